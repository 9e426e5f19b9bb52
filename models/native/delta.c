/* The native executor of a sparse plan: dirty sets, packed weights, dispatch by processor.
 *
 * Owns nothing but the program; the state belongs to the caller. Invariant: with thresholds of 0
 * a run leaves the state bit for bit as a full run over the same pixels would, provided every
 * changed pixel is in the mask.
 */
#include "delta.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static const int32_t LANE_NUMBERS[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

#if defined(__x86_64__)
#define VECTOR_REGISTER "v"
#define LANES 16
#define ROWS 8
#define COLUMNS 3
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")))
#define NAME(x) JOIN(x, avx512)
#include "delta_kernels.h"
#undef LANES
#undef ROWS
#undef COLUMNS
#undef TARGET
#undef NAME

#undef VECTOR_REGISTER
#define VECTOR_REGISTER "x"
#define LANES 8
#define ROWS 6
#define COLUMNS 2
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) JOIN(x, avx2)
#include "delta_kernels.h"
#undef LANES
#undef ROWS
#undef COLUMNS
#undef TARGET
#undef NAME
#endif

#define LANES 4
#if defined(__aarch64__)
#define VECTOR_REGISTER "w"
#define ROWS 6
#define COLUMNS 4
#else
#define ROWS 4
#define COLUMNS 3
#endif
#define TARGET
#define NAME(x) JOIN(x, plain)
#include "delta_kernels.h"

static const struct kernels *const VARIANTS[] = {
#if defined(__x86_64__)
    &kernels_avx512,
    &kernels_avx2,
#endif
    &kernels_plain,
};

static int is_supported(const struct kernels *kernels) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (kernels == &kernels_avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  if (kernels == &kernels_avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  (void)kernels;
  return 1;
}

static const struct kernels *find_kernels(const char *name) {
  for (size_t i = 0; i < sizeof VARIANTS / sizeof *VARIANTS; i++)
    if (is_supported(VARIANTS[i]) && (!name || !*name || !strcmp(name, VARIANTS[i]->name + 1)))
      return VARIANTS[i];
  return NULL;
}

/* --- programs ----------------------------------------------------------------------------- */

static void *aligned(int64_t bytes) {
  void *memory = aligned_alloc(64, (size_t)((bytes + 127) / 64 * 64));
  if (memory) memset(memory, 0, (size_t)((bytes + 127) / 64 * 64));
  return memory;
}

static int32_t *copied(const int32_t *from, int32_t count) {
  int32_t *to = aligned(4 * (int64_t)count);
  if (to) memcpy(to, from, 4 * (size_t)count);
  return to;
}

/* Lay convolution weights [depth][outputs] out as the kernel walks them. */
static int pack_weights(packed_step *step, const struct kernels *kernels, int64_t depth) {
  const delta_step *plan = &step->plan;
  int lanes = kernels->lanes, outputs = plan->outputs;
  int vectors = (outputs + lanes - 1) / lanes, padded = vectors * lanes;
  step->weight = aligned(4 * depth * padded);
  step->bias = aligned(4 * (int64_t)padded);
  if (!step->weight || !step->bias) return -1;
  memcpy(step->bias, plan->bias, 4 * (size_t)outputs);
  if (plan->kind != CONV) {
    for (int64_t k = 0; k < depth; k++)
      memcpy(step->weight + k * padded, plan->weight + k * outputs, 4 * (size_t)outputs);
    return 0;
  }
  int groups = (vectors + kernels->columns - 1) / kernels->columns;
  float *to = step->weight;
  for (int g = 0, done = 0; g < groups; g++) {
    int nb = (vectors - done + groups - g - 1) / (groups - g);
    int from = done * lanes, count = outputs - from < nb * lanes ? outputs - from : nb * lanes;
    for (int64_t k = 0; k < depth; k++, to += nb * lanes)
      memcpy(to, plan->weight + k * outputs + from, 4 * (size_t)count);
    done += nb;
  }
  return 0;
}

/* Note where the taps of a window lie; neighbouring ones in one run where memory allows. */
static int find_taps(packed_step *step, const delta_map *map) {
  const delta_step *plan = &step->plan;
  int64_t position = map ? map->stride : plan->inputs, line = map ? map->pitch * position : 0;
  int joins = plan->kind == CONV && plan->dilation_x == 1 && position == plan->inputs;
  int across = joins ? 1 : plan->kernel_x;
  step->tap_count = plan->kernel_y * across;
  step->tap_length = joins ? plan->kernel_x * plan->inputs : plan->inputs;
  step->taps = aligned(8 * (int64_t)step->tap_count);
  if (!step->taps) return -1;
  for (int u = 0; u < plan->kernel_y; u++)
    for (int v = 0; v < across; v++)
      step->taps[u * across + v] = u * plan->dilation_y * line + v * plan->dilation_x * position;
  return 0;
}

static int prepare(delta_program *program, packed_step *step, const delta_step *plan, int inner) {
  step->plan = *plan;
  const delta_map *target = plan->target < 0 ? NULL : program->maps + plan->target;
  if (plan->kind == CONV || plan->kind == DEPTHWISE) {
    int64_t depth = (int64_t)plan->kernel_y * plan->kernel_x;
    if (plan->kind == CONV) depth *= plan->inputs;
    if (find_taps(step, inner ? NULL : program->maps + plan->source)) return -1;
    if (pack_weights(step, program->kernels, depth)) return -1;
  }
  if (plan->kind == AFFINE && pack_weights(step, program->kernels, 1)) return -1;
  if (plan->kind == PICK) {
    step->rows = copied(plan->rows, target->height);
    step->columns = copied(plan->columns, target->width);
    if (!step->rows || !step->columns) return -1;
  }
  if (plan->kind == SELECT && !(step->picked = copied(plan->picked, plan->outputs))) return -1;
  return 0;
}

delta_program *delta_create(const delta_map *maps, int32_t map_count, const delta_step *steps,
                            int32_t step_count, int32_t input, int64_t mask_bytes,
                            const char *variant) {
  const struct kernels *kernels = find_kernels(variant);
  delta_program *program = kernels ? calloc(1, sizeof *program) : NULL;
  if (!program) return NULL;
  program->kernels = kernels;
  program->input = input;
  program->maps = calloc((size_t)map_count, sizeof *maps);
  program->steps = calloc((size_t)step_count, sizeof *program->steps);
  program->masks = aligned(mask_bytes);
  int64_t positions = 0, side = 0, channels = 0;
  if (program->maps && program->steps && program->masks) {
    program->map_count = map_count;
    memcpy(program->maps, maps, (size_t)map_count * sizeof *maps);
    for (int32_t i = 0; i < map_count; i++) {
      int64_t here = (int64_t)maps[i].height * maps[i].width;
      positions = here > positions ? here : positions;
      side = maps[i].width > side ? maps[i].width : side;
    }
    for (int32_t i = 0; i < step_count; i++, program->step_count++) {
      channels = steps[i].outputs > channels ? steps[i].outputs : channels;
      if (prepare(program, program->steps + i, steps + i, i && steps[i - 1].chained)) break;
    }
  }
  program->tile_floats = TILE_FLOATS + (channels + 2 * kernels->lanes) * (int64_t)kernels->rows;
  program->wanted = aligned(positions);
  program->list = aligned(4 * positions);
  program->line = aligned(2 * side + 4096);
  program->tiles = aligned(4 * 2 * program->tile_floats);
  if (program->step_count != step_count || !program->wanted || !program->list ||
      !program->line || !program->tiles) {
    program->step_count = step_count;
    delta_free(program);
    return NULL;
  }
  return program;
}

void delta_free(delta_program *program) {
  if (!program) return;
  for (int32_t i = 0; program->steps && i < program->step_count; i++) {
    packed_step *step = program->steps + i;
    free(step->weight), free(step->bias), free(step->taps);
    free(step->rows), free(step->columns), free(step->picked);
  }
  free(program->maps), free(program->steps), free(program->masks), free(program->line);
  free(program->wanted), free(program->list), free(program->tiles), free(program);
}

const char *delta_variant(const delta_program *program) { return program->kernels->name + 1; }

/* --- pixels ------------------------------------------------------------------------------- */

static uint8_t *input_mask(delta_program *program) {
  return program->masks + program->maps[program->input].mask;
}

static int is_empty(const uint8_t *mask, int count) {
  uint64_t any = 0, eight;
  int i = 0;
  for (; i + 8 <= count; i += 8) memcpy(&eight, mask + i, 8), any |= eight;
  for (; i < count; i++) any |= mask[i];
  return !any;
}

/* Write the mask of changed pixels from one byte per block x block pixels. */
static int expand(delta_program *program, const uint8_t *changed, int32_t block) {
  const delta_map *map = program->maps + program->input;
  uint8_t *mask = input_mask(program);
  if (block < 1) return -1;
  int across = (map->width + block - 1) / block;
  for (int y = 0; y < map->height; y++) {
    const uint8_t *from = changed + (int64_t)(y / block) * across;
    uint8_t *to = mask + (int64_t)y * map->width;
    if (block == 1 && is_empty(from, map->width))
      memset(to, 0, (size_t)map->width);
    else if (block == 1)
      for (int x = 0; x < map->width; x++) to[x] = from[x] != 0;
    else if (y % block)
      memcpy(to, to - map->width, (size_t)map->width);
    else
      for (int x = 0; x < map->width; x++) to[x] = from[x / block] != 0;
  }
  return 0;
}

/* Find the next run of set bytes in [x, width); return its start and set its end. */
static int next_run(const uint8_t *mask, int x, int width, int *end) {
  uint64_t eight;
  while (x + 8 <= width && (memcpy(&eight, mask + x, 8), !eight)) x += 8;
  while (x < width && !mask[x]) x++;
  for (*end = x; *end < width && mask[*end]; ++*end) continue;
  return x;
}

/* Convert a run of pixels: to = (from - mean) * scale. */
static void convert(float *restrict to, const uint8_t *restrict from, int count, int channels,
                    const float *mean, const float *scale) {
  int is_plain = 1;
  for (int c = 0; c < channels; c++) is_plain &= mean[c] == 0 && scale[c] == 1;
  if (is_plain)
    for (int i = 0; i < count * channels; i++) to[i] = (float)from[i];
  else
    for (int i = 0; i < count; i++)
      for (int c = 0; c < channels; c++)
        to[i * channels + c] = ((float)from[i * channels + c] - mean[c]) * scale[c];
}

int32_t delta_feed_bytes(delta_program *program, float *state, const uint8_t *pixels,
                         const uint8_t *changed, int32_t block, const float *mean,
                         const float *scale) {
  const delta_map *map = program->maps + program->input;
  if (changed && expand(program, changed, block)) return -1;
  for (int y = 0; y < map->height; y++) {
    const uint8_t *mask = input_mask(program) + (int64_t)y * map->width;
    const uint8_t *from = pixels + (int64_t)y * map->width * map->channels;
    float *to = state + map->offset + (int64_t)y * map->pitch * map->stride;
    for (int end = map->width, x = changed ? next_run(mask, 0, map->width, &end) : 0;
         x < map->width; x = next_run(mask, end, map->width, &end)) {
      convert(to + x * map->stride, from + x * map->channels, end - x, map->channels, mean, scale);
      if (!changed) break;
    }
  }
  return 0;
}

int32_t delta_feed_floats(delta_program *program, float *state, const float *pixels,
                          const uint8_t *changed, int32_t block) {
  const delta_map *map = program->maps + program->input;
  if (!changed) {
    for (int64_t y = 0; y < map->height; y++)
      memcpy(state + map->offset + y * map->pitch * map->stride,
             pixels + y * map->width * map->channels, 4 * (size_t)map->width * map->channels);
    return 0;
  }
  if (expand(program, changed, block)) return -1;
  for (int y = 0; y < map->height; y++) {
    const uint8_t *mask = input_mask(program) + (int64_t)y * map->width;
    for (int end, x = next_run(mask, 0, map->width, &end); x < map->width;
         x = next_run(mask, end, map->width, &end))
      memcpy(state + map->offset + ((int64_t)y * map->pitch + x) * map->stride,
             pixels + ((int64_t)y * map->width + x) * map->channels,
             4 * (size_t)(end - x) * map->channels);
  }
  return 0;
}

/* --- dirty sets --------------------------------------------------------------------------- */

static void join_masks(uint8_t *restrict to, const uint8_t *restrict from, int64_t count) {
  for (int64_t i = 0; i < count; i++) to[i] |= from[i];
}

/* Write which windows of a step hold a dirty position: exact, or a little more where the window
 * has holes. */
static void dilate(const delta_program *program, const delta_step *plan, const delta_map *target,
                   uint8_t *to) {
  const delta_map *map = program->maps + plan->source;
  const uint8_t *mask = program->masks + map->mask;
  int reach = (plan->kernel_x - 1) * plan->dilation_x, step = plan->stride_x;
  uint8_t *line = program->line;
  for (int y = 0; y < target->height; y++, to += target->width) {
    int any = 0;
    for (int u = 0; u < plan->kernel_y; u++) {
      int from = y * plan->stride_y - plan->pad_y + u * plan->dilation_y;
      if (from < 0 || from >= map->height) continue;
      const uint8_t *row = mask + (int64_t)from * map->width;
      if (is_empty(row, map->width)) continue;
      if (any) join_masks(line, row, map->width);
      else memcpy(line, row, (size_t)map->width);
      any = 1;
    }
    memset(to, 0, (size_t)target->width);
    if (!any) continue;
    for (int end, x = next_run(line, 0, map->width, &end); x < map->width;
         x = next_run(line, end, map->width, &end)) {
      int first = x + plan->pad_x - reach, last = (end - 1 + plan->pad_x) / step;
      first = first <= 0 ? 0 : (first + step - 1) / step;
      if (last >= target->width) last = target->width - 1;
      if (first <= last) memset(to + first, 1, (size_t)(last - first + 1));
    }
  }
}

/* Write the dirty set of a chain: what its first step reads, and the last step's residual. */
static void spread(const delta_program *program, int32_t first, int32_t last, uint8_t *to) {
  const delta_step *plan = &program->steps[first].plan;
  const delta_map *target = program->maps + program->steps[last].plan.target;
  const delta_map *map = program->maps + plan->source;
  int64_t count = (int64_t)target->height * target->width;
  if (plan->kind == PICK) {
    const packed_step *step = program->steps + first;
    for (int y = 0; y < target->height; y++)
      for (int x = 0; x < target->width; x++) {
        int row = step->rows[y], column = step->columns[x];
        to[(int64_t)y * target->width + x] =
            row >= 0 && column >= 0 && program->masks[map->mask + (int64_t)row * map->width + column];
      }
  } else if (plan->kernel_y * plan->kernel_x * plan->stride_y * plan->stride_x == 1) {
    memcpy(to, program->masks + map->mask, (size_t)count);
  } else {
    dilate(program, plan, target, to);
  }
  if (plan->second >= 0)
    join_masks(to, program->masks + program->maps[plan->second].mask, count);
  for (int32_t s = first; s <= last; s++)
    if (program->steps[s].plan.residual >= 0)
      join_masks(to, program->masks + program->maps[program->steps[s].plan.residual].mask, count);
}

static int32_t listed(const uint8_t *mask, int height, int width, int32_t *list) {
  int32_t count = 0;
  for (int y = 0; y < height; y++, mask += width)
    for (int end, x = next_run(mask, 0, width, &end); x < width;
         x = next_run(mask, end, width, &end))
      for (; x < end; x++) list[count++] = (int32_t)((uint32_t)y << 16 | (uint32_t)x);
  return count;
}

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

int32_t delta_run(delta_program *program, float *state, const float *thresholds,
                  const float *dense_above, int32_t full, int32_t *dirty, int32_t *changed,
                  int64_t *spent_ns) {
  int32_t not_finite = 0;
  for (int32_t first = 0, last; first < program->step_count; first = last + 1) {
    for (last = first; program->steps[last].plan.chained; last++) continue;
    const delta_step *plan = &program->steps[last].plan;
    const delta_map *target = program->maps + plan->target;
    int64_t started_ns = spent_ns ? now_ns() : 0;
    int64_t positions = (int64_t)target->height * target->width;
    uint8_t *mask = program->masks + target->mask;
    if (plan->kind == JOIN) {
      if (!full && plan->second == 0) memset(mask, 0, (size_t)positions);
      if (!full) join_masks(mask, program->masks + program->maps[plan->source].mask, positions);
      continue;
    }
    job job = {thresholds[last], full, program->list, (int32_t)positions, NULL, 0, 0};
    if (!full) {
      uint8_t *wanted = plan->prunes ? program->wanted : mask;
      spread(program, first, last, wanted);
      int32_t count = listed(wanted, target->height, target->width, program->list);
      for (int32_t s = first; s <= last; s++) dirty[s] = count;
      job.is_dense = (float)count >= dense_above[last] * (float)positions;
      if (!job.is_dense) job.count = count;
      if (plan->prunes && !job.is_dense) {
        job.mask = mask;
        memset(mask, 0, (size_t)positions);
      } else if (plan->prunes) {
        memcpy(mask, wanted, (size_t)positions);
      }
    }
    if (full)
      for (int32_t s = first; s <= last; s++) dirty[s] = (int32_t)positions;
    program->kernels->run(program, state, first, last, &job);
    for (int32_t s = first; s <= last; s++) changed[s] = job.changed;
    if (spent_ns) spent_ns[last] += now_ns() - started_ns;
    not_finite |= job.not_finite;
  }
  return not_finite;
}
