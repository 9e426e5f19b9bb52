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

static const float *placed(const delta_program *program, const float *state,
                           const delta_map *map) {
  return (map->is_shared ? program->scratch : state) + map->offset;
}

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

#include "delta_sets.h"

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
  step->cost = (double)plan->kernel_y * plan->kernel_x * plan->outputs;
  if (plan->kind == CONV) step->cost *= plan->inputs;
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
                            float *scratch, const char *variant) {
  const struct kernels *kernels = find_kernels(variant);
  delta_program *program = kernels ? calloc(1, sizeof *program) : NULL;
  if (!program) return NULL;
  program->kernels = kernels;
  program->input = input;
  program->scratch = scratch;
  program->maps = calloc((size_t)map_count, sizeof *maps);
  program->steps = calloc((size_t)step_count, sizeof *program->steps);
  program->masks = aligned(mask_bytes);
  program->needs = aligned(mask_bytes);
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
      int is_whole = steps[i].kind == PICK && steps[i].source == input;
      int is_beside = steps[i].kind != JOIN && steps[i].second == input;
      if (is_whole || is_beside || steps[i].residual == input) program->reads_all_pixels = 1;
      if (prepare(program, program->steps + i, steps + i, i && steps[i - 1].chained)) break;
    }
  }
  program->tile_floats = TILE_FLOATS + (channels + 2 * kernels->lanes) * (int64_t)kernels->rows;
  program->list = aligned(4 * positions);
  program->line = aligned(2 * side + 4096);
  program->rows = aligned(4 * (int64_t)map_count);
  program->tiles = aligned(4 * 2 * program->tile_floats);
  if (program->step_count != step_count || !program->needs || !program->rows ||
      !program->list || !program->line || !program->tiles) {
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
  free(program->needs), free(program->rows), free(program->list), free(program->tiles), free(program);
}

const char *delta_variant(const delta_program *program) { return program->kernels->name + 1; }

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

#include "delta_pixels.h"

/* --- running ------------------------------------------------------------------------------ */

typedef struct {
  float *state;
  const delta_frame *frame;
  const float *thresholds, *dense_above;
  int32_t *dirty, *changed;
  int64_t *spent_ns, since_ns;
  int32_t has_all_pixels, not_finite;
} running;

static int32_t chain_end(const delta_program *program, int32_t first) {
  while (program->steps[first].plan.chained) first++;
  return first;
}

/* Find what the steps of a segment must compute; return that as a share of all their work. */
static double find_sets(const delta_program *program, int32_t first, int32_t last) {
  double wanted = 0, whole = 0;
  for (int32_t s = first, end; s <= last; s = end + 1) {
    end = chain_end(program, s);
    const delta_step *plan = &program->steps[s].plan;
    int32_t to = program->steps[end].plan.target;
    const delta_map *target = program->maps + to;
    int64_t count = positions_of(target);
    uint8_t *dirty = dirty_of(program, to);
    int is_first = plan->kind != JOIN || plan->second == 0;
    if (is_first && target->is_shared) memset(program->needs + target->mask, 0, (size_t)count);
    if (plan->kind != JOIN) spread(program, s, end, dirty);
    else if (is_first) memcpy(dirty, dirty_of(program, plan->source), (size_t)count);
    else join_masks(dirty, dirty_of(program, plan->source), count);
  }
  for (int32_t end = last, s; end >= first; end = s - 1) {
    for (s = end; s > first && program->steps[s - 1].plan.chained; s--) continue;
    int32_t to = program->steps[end].plan.target;
    need(program, s, end);
    double cost = 0, count = (double)positions_of(program->maps + to);
    for (int32_t i = s; i <= end; i++) cost += program->steps[i].cost;
    wanted += cost * (double)counted(wanted_of(program, to), positions_of(program->maps + to));
    whole += cost * count;
  }
  return whole > 0 ? wanted / whole : 1;
}

/* Compute what a job says, and note what it did. */
static void execute(delta_program *program, running *run, int32_t first, int32_t last, job *job) {
  program->kernels->run(program, run->state, first, last, job);
  int64_t now = run->spent_ns ? now_ns() : 0;
  if (run->spent_ns) run->spent_ns[last] += now - run->since_ns;
  run->since_ns = now;
  for (int32_t s = first; s <= last; s++)
    run->dirty[s] += job->count, run->changed[s] += job->changed;
  run->not_finite |= job->not_finite;
}

static void run_chain(delta_program *program, running *run, int32_t first, int32_t last,
                      int is_dense) {
  const delta_step *plan = &program->steps[last].plan;
  const delta_map *target = program->maps + plan->target;
  const uint8_t *wanted = wanted_of(program, plan->target);
  int64_t positions = positions_of(target);
  job job = {run->thresholds[last], is_dense, program->list, 0, (int32_t)positions, NULL, 0, 0};
  if (!is_dense) {
    job.count = listed(wanted, target->height, target->width, program->list);
    if (program->steps[first].plan.source == program->input && !run->has_all_pixels)
      convert_windows(program, run->frame, &program->steps[first].plan, target, wanted);
    if (plan->prunes) {
      job.mask = dirty_of(program, plan->target);
      memset(job.mask, 0, (size_t)positions);
    }
  } else if (program->steps[first].plan.source == program->input && !run->has_all_pixels) {
    convert_rows(program, run->frame, 0, program->maps[program->input].height);
    run->has_all_pixels = 1;
  }
  execute(program, run, first, last, &job);
}

/* Return how many rows of a map can be computed from the rows that others have come down to. */
static int32_t rows_ready(const delta_program *program, int32_t first, int32_t last) {
  const packed_step *step = program->steps + first;
  const delta_step *plan = &step->plan;
  const delta_map *target = program->maps + program->steps[last].plan.target;
  int32_t height = program->maps[plan->source].height, ready = target->height;
  int32_t done = program->rows[plan->source], reach = (plan->kernel_y - 1) * plan->dilation_y;
  if (plan->kind == PICK)
    for (int32_t y = 0; y < ready; y++) ready = step->rows[y] >= done ? y : ready;
  else if (done < height && done - 1 + plan->pad_y < reach)
    return 0;
  else if (done < height && (done - 1 + plan->pad_y - reach) / plan->stride_y + 1 < ready)
    ready = (done - 1 + plan->pad_y - reach) / plan->stride_y + 1;
  if (plan->kind == JOIN) return ready;
  if (plan->second >= 0 && program->rows[plan->second] < ready) ready = program->rows[plan->second];
  for (int32_t s = first; s <= last; s++) {
    int32_t beside = program->steps[s].plan.residual;
    if (beside >= 0 && program->rows[beside] < ready) ready = program->rows[beside];
  }
  return ready;
}

/* Compute everything, band by band: each map as far down as its sources allow. */
static void run_full(delta_program *program, running *run) {
  int32_t *rows = program->rows, height = program->maps[program->input].height;
  memset(rows, 0, (size_t)program->map_count * sizeof *rows);
  for (int32_t from = 0; from < height; from = rows[program->input]) {
    int32_t until = height - from < BAND_ROWS ? height : from + BAND_ROWS;
    convert_rows(program, run->frame, from, until);
    rows[program->input] = until;
    for (int32_t first = 0, last; first < program->step_count; first = last + 1) {
      last = chain_end(program, first);
      int32_t to = program->steps[last].plan.target;
      const delta_map *target = program->maps + to;
      int32_t ready = rows_ready(program, first, last);
      if (program->steps[first].plan.kind == JOIN) {
        int is_first = program->steps[first].plan.second == 0;
        rows[to] = is_first || ready < rows[to] ? ready : rows[to];
        continue;
      }
      int32_t count = (ready - rows[to]) * target->width;
      if (count <= 0 || (ready < target->height && count < BAND_POSITIONS)) continue;
      job job = {0, 1, NULL, rows[to], count, NULL, 0, 0};
      execute(program, run, first, last, &job);
      rows[to] = ready;
    }
  }
}

int32_t delta_run(delta_program *program, float *state, const delta_frame *frame,
                  const float *thresholds, const float *dense_above, int32_t *dirty,
                  int32_t *changed, int64_t *spent_ns) {
  running run = {state, frame, thresholds, dense_above, dirty, changed, spent_ns, 0, 0, 0};
  memset(dirty, 0, (size_t)program->step_count * sizeof *dirty);
  memset(changed, 0, (size_t)program->step_count * sizeof *changed);
  if (spent_ns) run.since_ns = now_ns();
  if (!frame->changed) {
    run_full(program, &run);
    return run.not_finite;
  }
  take_mask(program, frame);
  if (program->reads_all_pixels) {
    convert_rows(program, frame, 0, program->maps[program->input].height);
    run.has_all_pixels = 1;
  }
  for (int32_t first = 0, last; first < program->step_count; first = last + 1) {
    int32_t segment = program->steps[first].plan.segment;
    for (last = first; last + 1 < program->step_count; last++)
      if (program->steps[last + 1].plan.segment != segment) break;
    int is_dense = find_sets(program, first, last) >= (double)dense_above[last];
    for (int32_t s = first, end; s <= last; s = end + 1) {
      end = chain_end(program, s);
      if (program->steps[s].plan.kind == JOIN) continue;
      run_chain(program, &run, s, end, is_dense);
      if (!is_dense && end < last && program->steps[end].plan.prunes)
        find_sets(program, end + 1, last); /* fewer rows changed than had been feared */
    }
  }
  return run.not_finite;
}
