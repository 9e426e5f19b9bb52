/* Dirty and needed sets: which positions of a map a frame makes stale, and which must be at hand.
 *
 * Included by delta.c. A set is one byte, 0 or 1, per position; the image's is one per cell of
 * `program->cell` pixels. Dirty sets grow forwards, through what a window reads; needed sets grow
 * backwards, over what a window reads, for maps that no state holds.
 */

static int is_empty(const uint8_t *mask, int count) {
  uint64_t any = 0, eight;
  int i = 0;
  for (; i + 8 <= count; i += 8) memcpy(&eight, mask + i, 8), any |= eight;
  for (; i < count; i++) any |= mask[i];
  return !any;
}

/* Find the next run of set bytes in [x, width); return its start and set its end. */
static inline int next_run(const uint8_t *mask, int x, int width, int *end) {
  const uint64_t ones = 0x0101010101010101u;
  uint64_t eight = 0;
  while (x + 8 <= width && (memcpy(&eight, mask + x, 8), !eight)) x += 8;
  if (x + 8 <= width) x += __builtin_ctzll(eight) / 8;
  while (x < width && !mask[x]) x++;
  int last = x;
  for (eight = 0; last + 8 <= width; last += 8) {
    memcpy(&eight, mask + last, 8);
    eight = (eight - ones) & ~eight & ones << 7; /* the lowest bit set is in the first zero byte */
    if (eight) break;
  }
  if (last + 8 <= width) last += __builtin_ctzll(eight) / 8;
  while (last < width && mask[last]) last++;
  *end = last;
  return x;
}

static void join_masks(uint8_t *restrict to, const uint8_t *restrict from, int64_t count) {
  for (int64_t i = 0; i < count; i++) to[i] |= from[i];
}

static int64_t counted(const uint8_t *mask, int64_t count) {
  int64_t sum = 0, i = 0;
  uint64_t eight;
  for (; i + 8 <= count; i += 8) memcpy(&eight, mask + i, 8), sum += __builtin_popcountll(eight);
  for (; i < count; i++) sum += mask[i];
  return sum;
}

static int32_t listed(const uint8_t *mask, int height, int width, int32_t *list) {
  int32_t count = 0;
  for (int y = 0; y < height; y++, mask += width)
    for (int end, x = next_run(mask, 0, width, &end); x < width;
         x = next_run(mask, end, width, &end))
      for (; x < end; x++) list[count++] = (int32_t)((uint32_t)y << 16 | (uint32_t)x);
  return count;
}

static int64_t positions_of(const delta_map *map) { return (int64_t)map->height * map->width; }

static uint8_t *dirty_of(const delta_program *program, int32_t map) {
  return program->masks + program->maps[map].mask;
}

/* What of a map has to be computed: the dirty set, or what is needed where no state holds it. */
static uint8_t *wanted_of(const delta_program *program, int32_t map) {
  const delta_map *which = program->maps + map;
  return (which->is_shared ? program->needs : program->masks) + which->mask;
}

static int cell_of(const delta_program *program, int32_t map) {
  return map == program->input ? program->cell : 1;
}

/* Write which windows of a step hold a dirty position: exact, or a little more where the window
 * has holes or the image's cells are coarser than its positions. */
static void dilate(const delta_program *program, const delta_step *plan, const delta_map *target,
                   uint8_t *to) {
  const delta_map *map = program->maps + plan->source;
  int cell = cell_of(program, plan->source), width = (map->width + cell - 1) / cell;
  const uint8_t *mask = dirty_of(program, plan->source);
  int reach = (plan->kernel_x - 1) * plan->dilation_x, step = plan->stride_x;
  int high = (plan->kernel_y - 1) * plan->dilation_y, down = cell > 1 ? 1 : plan->dilation_y;
  uint8_t *line = program->line;
  for (int y = 0; y < target->height; y++, to += target->width) {
    int any = 0, seen = -1, top = y * plan->stride_y - plan->pad_y;
    for (int from = top; from <= top + high; from += down) {
      if (from < 0 || from >= map->height || from / cell == seen) continue;
      seen = from / cell;
      const uint8_t *row = mask + (int64_t)seen * width;
      if (is_empty(row, width)) continue;
      if (any) join_masks(line, row, width);
      else memcpy(line, row, (size_t)width);
      any = 1;
    }
    memset(to, 0, (size_t)target->width);
    if (!any) continue;
    for (int end, x = next_run(line, 0, width, &end); x < width;
         x = next_run(line, end, width, &end)) {
      int first = x * cell + plan->pad_x - reach, last = end * cell;
      last = ((last > map->width ? map->width : last) - 1 + plan->pad_x) / step;
      first = first <= 0 ? 0 : (first + step - 1) / step;
      if (last >= target->width) last = target->width - 1;
      if (first <= last) memset(to + first, 1, (size_t)(last - first + 1));
    }
  }
}

/* Write the dirty set of a chain: what its first step reads, and the residuals of all. */
static void spread(const delta_program *program, int32_t first, int32_t last, uint8_t *to) {
  const delta_step *plan = &program->steps[first].plan;
  const delta_map *target = program->maps + program->steps[last].plan.target;
  const delta_map *map = program->maps + plan->source;
  int64_t count = positions_of(target);
  if (plan->kind == PICK) {
    const packed_step *step = program->steps + first;
    const uint8_t *mask = dirty_of(program, plan->source);
    for (int y = 0; y < target->height; y++)
      for (int x = 0; x < target->width; x++) {
        int row = step->rows[y], column = step->columns[x];
        to[(int64_t)y * target->width + x] =
            row >= 0 && column >= 0 && mask[(int64_t)row * map->width + column];
      }
  } else if (plan->kernel_y * plan->kernel_x * plan->stride_y * plan->stride_x == 1 &&
             cell_of(program, plan->source) == 1) {
    memcpy(to, dirty_of(program, plan->source), (size_t)count);
  } else {
    dilate(program, plan, target, to);
  }
  if (plan->second >= 0) join_masks(to, dirty_of(program, plan->second), count);
  for (int32_t s = first; s <= last; s++)
    if (program->steps[s].plan.residual >= 0)
      join_masks(to, dirty_of(program, program->steps[s].plan.residual), count);
}

/* Add to the needed set of a step's source what the windows at the wanted positions read. */
static void cover(const delta_program *program, const packed_step *step, const delta_map *target,
                  const uint8_t *wanted) {
  const delta_step *plan = &step->plan;
  const delta_map *map = program->maps + plan->source;
  uint8_t *to = program->needs + map->mask;
  if (plan->kind != PICK && plan->kernel_y * plan->kernel_x * plan->stride_y * plan->stride_x == 1) {
    join_masks(to, wanted, positions_of(target));
    return;
  }
  int reach = (plan->kernel_x - 1) * plan->dilation_x;
  for (int y = 0; y < target->height; y++, wanted += target->width)
    for (int end, x = next_run(wanted, 0, target->width, &end); x < target->width;
         x = next_run(wanted, end, target->width, &end)) {
      if (plan->kind == PICK) {
        for (int row = step->rows[y]; row >= 0 && x < end; x++)
          if (step->columns[x] >= 0) to[(int64_t)row * map->width + step->columns[x]] = 1;
        continue;
      }
      int from = x * plan->stride_x - plan->pad_x;
      int until = (end - 1) * plan->stride_x - plan->pad_x + reach + 1;
      from = from < 0 ? 0 : from;
      until = until > map->width ? map->width : until;
      for (int u = 0; u < plan->kernel_y && from < until; u++) {
        int row = y * plan->stride_y - plan->pad_y + u * plan->dilation_y;
        if (row >= 0 && row < map->height)
          memset(to + (int64_t)row * map->width + from, 1, (size_t)(until - from));
      }
    }
}

/* Add what a chain reads to the needed sets of the maps that no state holds. */
static void need(const delta_program *program, int32_t first, int32_t last) {
  const delta_step *plan = &program->steps[first].plan;
  int32_t to = program->steps[last].plan.target;
  const delta_map *target = program->maps + to;
  const uint8_t *wanted = wanted_of(program, to);
#define IS_VOLATILE(map) ((map) >= 0 && (map) != program->input && program->maps[map].is_shared)
  if (IS_VOLATILE(plan->source)) cover(program, program->steps + first, target, wanted);
  if (plan->kind == JOIN) return;
  if (IS_VOLATILE(plan->second))
    join_masks(program->needs + program->maps[plan->second].mask, wanted, positions_of(target));
  for (int32_t s = first; s <= last; s++) {
    int32_t beside = program->steps[s].plan.residual;
    if (IS_VOLATILE(beside))
      join_masks(program->needs + program->maps[beside].mask, wanted, positions_of(target));
  }
#undef IS_VOLATILE
}
