/* The kernels for one instruction set: included once per variant by delta.c.
 *
 * Wants LANES (floats of a vector), ROWS x COLUMNS (vectors accumulated at once), TARGET
 * (attribute that allows the instruction set) and NAME(x). Plain vector extensions: no intrinsics.
 */

typedef float NAME(vec) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t NAME(ivec) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#define V NAME(vec)
#define I NAME(ivec)
#define INLINE static inline __attribute__((always_inline)) TARGET
#ifdef VECTOR_REGISTER /* else the compiler may put what every product needs on the stack */
#define KEEP(v) __asm__("" : "+" VECTOR_REGISTER(v))
#else
#define KEEP(v) (void)0
#endif
#define LOAD(p) (*(const V *)(p))

INLINE V NAME(choose)(I mask, V yes, V no) { return (V)((mask & (I)yes) | (~mask & (I)no)); }

/* Keep what is not a number, as every comparison with it is false. */
INLINE V NAME(least)(V x, float most) {
  V edge = most - (V){0};
  return NAME(choose)(x > edge, edge, x);
}
INLINE V NAME(most)(V x, float least) {
  V edge = least - (V){0};
  return NAME(choose)(x < edge, edge, x);
}

INLINE void NAME(put)(float *to, V value, int count) {
  if (count >= LANES) {
    *(V *)to = value;
    return;
  }
  float all[LANES];
  __builtin_memcpy(all, &value, sizeof all);
  if (count >= LANES / 2) {
    __builtin_memcpy(to, all, LANES * 2);
    for (int i = LANES / 2; i < count; i++) to[i] = all[i];
  } else {
    for (int i = 0; i < count; i++) to[i] = all[i];
  }
}

/* e^x for moderate x to about |x| * 4e-8, relative; finite and positive everywhere. */
INLINE V NAME(exponential)(V x) {
  V t = NAME(most)(NAME(least)(x * 1.44269504f, 126.0f), -126.0f); /* 2^t */
  V shifted = t + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
  V f = t - (shifted - 12582912.0f);
  V p = f * 1.32669706e-3f + 9.67545994e-3f;
  p = p * f + 5.55074252e-2f;
  p = p * f + 2.40221217e-1f;
  p = p * f + 6.93146944e-1f;
  p = p * f + 1.0000001f;
  return (V)((I)p + ((I)shifted << 23)); /* straight into the exponent */
}

INLINE V NAME(activate)(V x, int activation, float low, float high) {
  switch (activation) {
    case RELU: return NAME(most)(x, 0.0f);
    case SILU: return x / (1.0f + NAME(exponential)(-x));
    case SIGMOID: return 1.0f / (1.0f + NAME(exponential)(-x));
    case CLIP: return NAME(least)(NAME(most)(x, low), high);
    case LEAKY: return NAME(choose)(x < 0.0f, x * low, x);
    case HARD_SIGMOID: return NAME(least)(NAME(most)(x * low + high, 0.0f), 1.0f);
    case HARD_SWISH: return x * NAME(least)(NAME(most)(x * low + high, 0.0f), 1.0f);
    case TANH: return 2.0f / (1.0f + NAME(exponential)(x * -2.0f)) - 1.0f;
    default: return x;
  }
}

#include "delta_products.h"

INLINE V NAME(larger)(V best, const float *from) { /* not a number wins */
  V value = LOAD(from);
  return NAME(choose)((value > best) | (value != value), value, best);
}

/* Maximum over the part of each window that lies inside the map. */
static TARGET void NAME(maximum)(const delta_step *plan, const delta_map *map, const float *from,
                                 const int32_t *ys, const int32_t *xs, float *to, int pitch,
                                 int count) {
  int64_t side = plan->dilation_x * map->stride, line = (int64_t)map->pitch * map->stride;
  for (int r = 0; r < count; r++, to += pitch) {
    int y = ys[r] * plan->stride_y - plan->pad_y, x = xs[r] * plan->stride_x - plan->pad_x;
    int down = plan->dilation_y, across = plan->dilation_x;
    int u0 = y < 0 ? (-y + down - 1) / down : 0, v0 = x < 0 ? (-x + across - 1) / across : 0;
    int u1 = plan->kernel_y, v1 = plan->kernel_x;
    while (y + (u1 - 1) * down >= map->height) u1--;
    while (x + (v1 - 1) * across >= map->width) v1--;
    const float *corner = from + (y + u0 * down) * line + (x + v0 * across) * map->stride;
    int high = u1 - u0, wide = v1 - v0;
    if (high == 2 && wide == 2) {
      const float *below = corner + down * line;
      for (int c = 0; c < plan->outputs; c += LANES) {
        V best = NAME(larger)(LOAD(corner + c), corner + c + side);
        *(V *)(to + c) = NAME(larger)(NAME(larger)(best, below + c), below + c + side);
      }
      continue;
    }
    for (int c = 0; c < plan->outputs; c += LANES) {
      V best = (V){0} - __builtin_inff();
      const float *row = corner + c;
      for (int u = 0; u < high; u++, row += down * line)
        for (int v = 0; v < wide; v++) best = NAME(larger)(best, row + v * side);
      *(V *)(to + c) = best;
    }
  }
}

/* Rows of the steps that are neither: `read` is where the same or the picked position lies. */
static TARGET void NAME(simple)(const packed_step *step, const float *from, const int32_t *read,
                                const float *other, const int32_t *beside, float *to, int pitch,
                                int count) {
  const delta_step *plan = &step->plan;
  int channels = plan->outputs;
  for (int r = 0; r < count; r++, to += pitch) {
    const float *row = from + read[r], *second = other ? other + beside[r] : NULL;
    if (plan->kind == PICK && read[r] < 0) {
      for (int c = 0; c < channels; c++) to[c] = 0;
    } else if (plan->kind == SELECT) {
      for (int c = 0; c < channels; c++) to[c] = row[step->picked[c]];
    } else if (plan->kind == ADD) {
      for (int c = 0; c < channels; c += LANES) *(V *)(to + c) = LOAD(row + c) + LOAD(second + c);
    } else if (plan->kind == MULTIPLY) {
      for (int c = 0; c < channels; c += LANES) *(V *)(to + c) = LOAD(row + c) * LOAD(second + c);
    } else if (plan->kind == AFFINE) {
      for (int c = 0; c < channels; c += LANES)
        *(V *)(to + c) = LOAD(row + c) * LOAD(step->weight + c) + LOAD(step->bias + c);
    } else {
      for (int c = 0; c < channels; c += LANES) *(V *)(to + c) = LOAD(row + c);
    }
  }
}

/* Apply an activation to whole vectors, `floats` of them one after the other. */
static TARGET void NAME(activate_all)(float *x, int floats, int activation, float low,
                                      float high) {
#define EACH(kind)                                                        \
  case kind:                                                              \
    for (int i = 0; i < floats; i += LANES)                               \
      *(V *)(x + i) = NAME(activate)(LOAD(x + i), kind, low, high);       \
    break;
  switch (activation) {
    EACH(RELU)
    EACH(SILU)
    EACH(SIGMOID)
    EACH(CLIP)
    EACH(LEAKY)
    EACH(HARD_SIGMOID)
    EACH(HARD_SWISH)
    EACH(TANH)
  }
#undef EACH
}

/* Whether a row differs from the old one by more than the threshold anywhere. May read a vector
 * beyond either: what lies there does not count. */
INLINE int NAME(differs)(const float *row, const float *old, int count, float threshold) {
  I found = {0};
  V limit = threshold - (V){0};
  for (int c = 0; c < count; c += LANES) {
    I here = *(const I *)(row + c) ^ *(const I *)(old + c);
    if (threshold > 0) {
      V distance = LOAD(row + c) - LOAD(old + c);
      here = ~(I)((V)((I)distance & 0x7fffffff) <= limit); /* not a number: differs */
    }
    if (c + LANES > count) here &= *(const I *)LANE_NUMBERS < count - c;
    found |= here;
  }
  uint64_t pairs[LANES / 2], any = 0;
  __builtin_memcpy(pairs, &found, sizeof pairs);
  for (int i = 0; i < LANES / 2; i++) any |= pairs[i];
  return any != 0;
}

static TARGET int NAME(is_finite)(const float *row, int count) {
  float sum = 0;
  for (int c = 0; c < count; c++) sum += row[c] - row[c]; /* 0, or not a number */
  return sum == 0;
}

/* Where a map's positions lie, in floats from its first. */
INLINE void NAME(locate)(const delta_map *map, const int32_t *ys, const int32_t *xs, int32_t *at) {
  int32_t line = map->pitch * map->stride, step = map->stride;
  for (int r = 0; r < TILE_POSITIONS; r++) at[r] = ys[r] * line + xs[r] * step;
}

/* One step of a chain for the tile's positions: from the state or the last tile into a tile. */
static TARGET void NAME(compute)(const delta_program *program, const float *state,
                                 const packed_step *step, const float *before,
                                 const int32_t *ys, const int32_t *xs, float *to,
                                 const int32_t *at, int count, int is_direct) {
  const delta_step *plan = &step->plan;
  int pitch = (plan->outputs + LANES - 1) / LANES * LANES;
  int32_t read[TILE_POSITIONS], beside[TILE_POSITIONS];
  const float *from = before;
  if (before) {
    int width = (plan->inputs + LANES - 1) / LANES * LANES;
    for (int r = 0; r < TILE_POSITIONS; r++) read[r] = r * width;
  } else {
    const delta_map *map = program->maps + plan->source;
    from = placed(program, state, map);
    if (plan->kind == MAX) {
      NAME(maximum)(plan, map, from, ys, xs, to, pitch, count);
      return;
    }
    if (plan->kind == PICK) {
      for (int r = 0; r < count; r++) {
        int y = step->rows[ys[r]], x = step->columns[xs[r]];
        read[r] = y < 0 || x < 0 ? -1 : (y * map->pitch + x) * map->stride;
      }
    } else if (plan->kind == CONV || plan->kind == DEPTHWISE) {
      int32_t line = map->pitch * map->stride;
      from -= plan->pad_y * (int64_t)line + plan->pad_x * map->stride;
      int32_t down = plan->stride_y * line, across = plan->stride_x * map->stride;
      for (int r = 0; r < TILE_POSITIONS; r++) read[r] = ys[r] * down + xs[r] * across;
    } else {
      NAME(locate)(map, ys, xs, read);
    }
  }
  if (plan->kind == CONV) {
    NAME(convolve)(step, from, read, to, at, count, is_direct);
  } else if (plan->kind == DEPTHWISE) {
    /* Few positions at once: their windows then stay in the first-level cache for all channels. */
    for (int r = 0, few = 2 * ROWS; r < count; r += few)
      NAME(depthwise)(step, from, read + r, to, at + r, count - r < few ? count - r : few,
                      is_direct);
  } else {
    const delta_map *second = plan->second < 0 ? NULL : program->maps + plan->second;
    if (second) NAME(locate)(second, ys, xs, beside);
    NAME(simple)(step, from, read, second ? placed(program, state, second) : NULL, beside, to, pitch,
                 count);
  }
}

/* Add the residual rows to a tile and apply the activation that follows. */
static TARGET void NAME(add_residual)(const delta_program *program, const float *state,
                                      const delta_step *plan, const int32_t *ys,
                                      const int32_t *xs, float *tile, int pitch, int count) {
  const delta_map *map = program->maps + plan->residual;
  const float *from = placed(program, state, map);
  int32_t at[TILE_POSITIONS];
  NAME(locate)(map, ys, xs, at);
  for (int r = 0; r < count; r++) {
    const float *row = from + at[r];
    for (int c = 0; c < pitch; c += LANES) *(V *)(tile + r * pitch + c) += LOAD(row + c);
  }
  NAME(activate_all)(tile, count * pitch, plan->after, plan->after_low, plan->after_high);
}

/* Apply an activation to rows of a tile on their way to where they belong. */
static TARGET void NAME(activate_home)(const delta_step *plan, const float *tile, int pitch,
                                       float *home, const int32_t *at, int live) {
  int channels = plan->outputs;
  float low = plan->low, high = plan->high;
#define EACH(kind)                                                           \
  case kind:                                                                 \
    for (int r = 0; r < live; r++, tile += pitch)                            \
      for (int c = 0; c < channels; c += LANES)                              \
        NAME(put)(home + at[r] + c, NAME(activate)(LOAD(tile + c), kind, low, high), \
                  channels - c);                                             \
    break;
  switch (plan->activation) {
    EACH(RELU)
    EACH(SILU)
    EACH(SIGMOID)
    EACH(CLIP)
    EACH(LEAKY)
    EACH(HARD_SIGMOID)
    EACH(HARD_SWISH)
    EACH(TANH)
  }
#undef EACH
}

/* Store finished rows, and mark the changed ones where the job compares; those that did not
 * change are left alone, unless they are the same bit for bit. */
static TARGET void NAME(store)(const delta_map *target, const float *tile, int pitch,
                               float *home, const int32_t *at, const int32_t *ys,
                               const int32_t *xs, int live, job *job) {
  int channels = target->channels, whole = channels / LANES * LANES;
  float threshold = job->threshold;
  for (int r = 0; r < live; r++, tile += pitch) {
    float *row = home + at[r];
    int changed = 1;
    if (job->mask) {
      changed = threshold > 0 ? NAME(differs)(tile, row, channels, threshold)
                              : NAME(differs)(tile, row, channels, 0);
      job->mask[(int64_t)ys[r] * target->width + xs[r]] = (uint8_t)changed;
      if (threshold > 0 && !changed) continue;
    }
    job->changed += changed;
    for (int c = 0; c < whole; c += LANES) *(V *)(row + c) = LOAD(tile + c);
    if (whole < channels) NAME(put)(row + whole, LOAD(tile + whole), channels - whole);
  }
}

static TARGET void NAME(run)(const delta_program *program, float *state, int32_t first,
                             int32_t last, job *job) {
  const delta_map *target = program->maps + program->steps[last].plan.target;
  int widest = LANES, y = job->row, x = 0;
  for (int32_t s = first; s <= last; s++)
    if (program->steps[s].plan.outputs > widest) widest = program->steps[s].plan.outputs;
  int size = TILE_FLOATS / (widest + LANES) / ROWS * ROWS;
  size = size < ROWS ? ROWS : size > TILE_POSITIONS ? TILE_POSITIONS / ROWS * ROWS : size;
  float *home = (float *)placed(program, state, target);
  for (int32_t i = 0; i < job->count; i += size) {
    int32_t ys[TILE_POSITIONS], xs[TILE_POSITIONS], at[TILE_POSITIONS], own[TILE_POSITIONS];
    int live = job->count - i < size ? job->count - i : size;
    int count = (live + ROWS - 1) / ROWS * ROWS;
    if (job->is_dense) {
      for (int r = 0, run; r < live; r += run) {
        run = live - r < target->width - x ? live - r : target->width - x;
        for (int j = 0; j < run; j++) ys[r + j] = y, xs[r + j] = x + j;
        x += run;
        if (x == target->width) x = 0, y++;
      }
    } else {
      const int32_t *list = job->list + i;
      for (int r = 0; r < live; r++) ys[r] = list[r] >> 16, xs[r] = list[r] & 0xffff;
    }
    for (int r = live; r < TILE_POSITIONS; r++) ys[r] = ys[0], xs[r] = xs[0];
    NAME(locate)(target, ys, xs, at);
    if (job->mask) /* what is compared at the end is fetched while the rows are computed */
      for (int r = 0; r < live; r++)
        for (int c = 0; c < target->channels; c += 16) __builtin_prefetch(home + at[r] + c, 1);
    const float *before = NULL;
    for (int32_t s = first; s <= last; s++) {
      const packed_step *step = program->steps + s;
      const delta_step *plan = &step->plan;
      int is_matrix = plan->kind == CONV || plan->kind == DEPTHWISE;
      int is_plain = plan->activation == NONE || (plan->activation == RELU && is_matrix);
      int is_direct = s == last && is_matrix && is_plain && plan->residual < 0 &&
                      !job->mask;
      int pitch = (plan->outputs + LANES - 1) / LANES * LANES;
      float *tile = program->tiles + ((s - first) & 1) * program->tile_floats;
      if (is_direct) {
        /* Positions that only fill the tile repeat the first: the same value is put twice. */
        NAME(compute)(program, state, step, before, ys, xs, home, at, count, 1);
        job->changed += live;
        break;
      }
      for (int r = 0; r < TILE_POSITIONS; r++) own[r] = r * pitch;
      NAME(compute)(program, state, step, before, ys, xs, tile, own, count, 0);
      if (s == last && !is_plain && plan->residual < 0 && !job->mask) {
        NAME(activate_home)(plan, tile, pitch, home, at, live);
        job->changed += live;
        break;
      }
      if (!is_plain)
        NAME(activate_all)(tile, count * pitch, plan->activation, plan->low, plan->high);
      if (plan->residual >= 0)
        NAME(add_residual)(program, state, plan, ys, xs, tile, pitch, count);
      if (s == last) NAME(store)(target, tile, pitch, home, at, ys, xs, live, job);
      before = tile;
    }
    if (target->watched)
      for (int r = 0; r < live; r++)
        if (!NAME(is_finite)(home + at[r], target->channels)) job->not_finite = 1;
  }
}

static TARGET void NAME(convert)(float *restrict to, const uint8_t *restrict from, int count,
                                 float mean, float scale) {
  for (int i = 0; i < count; i++) to[i] = ((float)from[i] - mean) * scale;
}

#include "delta_mask.h"

static const struct kernels NAME(kernels) = {
    TEXT(NAME()), LANES, ROWS, COLUMNS, NAME(run), NAME(convert), NAME(mask)};
#undef V
#undef I
#undef INLINE
#undef LOAD
#undef KEEP
