/* Frames: what differs between two, and one's changed cells and pixels as the steps read them.
 *
 * Included by delta.c. No state holds pixels: what is read is converted again in every run.
 */

/* Take the mask of changed cells; by pixel, where something reads the image position by position. */
static void take_mask(delta_program *program, const delta_frame *frame) {
  const delta_map *map = program->maps + program->input;
  uint8_t *to = dirty_of(program, program->input);
  int block = frame->block, across = (map->width + block - 1) / block;
  program->cell = program->reads_all_pixels ? 1 : block;
  if (program->cell == block) {
    int64_t count = (int64_t)across * ((map->height + block - 1) / block);
    memcpy(to, frame->changed, (size_t)count); /* in place, so that the compiler sees no overlap */
    for (int64_t i = 0; i < count; i++) to[i] = to[i] != 0;
    return;
  }
  for (int y = 0; y < map->height; y++)
    for (int x = 0; x < map->width; x++)
      to[(int64_t)y * map->width + x] = frame->changed[(int64_t)(y / block) * across + x / block] != 0;
}

/* Put pixels [from, until) of a line where the steps read them. */
static void convert(const delta_program *program, const delta_frame *frame, int y, int from,
                    int until) {
  const delta_map *map = program->maps + program->input;
  int64_t at = ((int64_t)y * map->width + from) * map->channels;
  float *to = program->scratch + map->offset + ((int64_t)y * map->pitch + from) * map->stride;
  int count = (until - from) * map->channels;
  if (frame->bytes)
    program->kernels->convert(to, frame->bytes + at, count, frame->mean, frame->scale);
  else
    memcpy(to, frame->floats + at, 4 * (size_t)count);
}

static void convert_rows(const delta_program *program, const delta_frame *frame, int from,
                         int until) {
  int width = program->maps[program->input].width;
  for (int y = from; y < until; y++) convert(program, frame, y, 0, width);
}

/* Convert what a step's windows at the wanted positions read of the image, line by line. */
static void convert_windows(const delta_program *program, const delta_frame *frame,
                            const delta_step *plan, const delta_map *target,
                            const uint8_t *wanted) {
  const delta_map *map = program->maps + program->input;
  int high = (plan->kernel_y - 1) * plan->dilation_y, step = plan->stride_y;
  int reach = (plan->kernel_x - 1) * plan->dilation_x;
  for (int y = 0; y < map->height; y++) {
    int first = y + plan->pad_y - high, last = (y + plan->pad_y) / step;
    first = first <= 0 ? 0 : (first + step - 1) / step;
    if (last >= target->height) last = target->height - 1;
    if (first > last) continue;
    const uint8_t *line = wanted + (int64_t)first * target->width;
    if (first < last) {
      memcpy(program->line, line, (size_t)target->width);
      for (int row = first + 1; row <= last; row++)
        join_masks(program->line, wanted + (int64_t)row * target->width, target->width);
      line = program->line;
    }
    for (int end, x = next_run(line, 0, target->width, &end); x < target->width;
         x = next_run(line, end, target->width, &end)) {
      int from = x * plan->stride_x - plan->pad_x;
      int until = (end - 1) * plan->stride_x - plan->pad_x + reach + 1;
      from = from < 0 ? 0 : from;
      until = until > map->width ? map->width : until;
      if (from < until) convert(program, frame, y, from, until);
    }
  }
}

int32_t delta_mask(const uint8_t *now, const uint8_t *reference, int32_t height, int32_t width,
                   int32_t channels, int32_t block, uint16_t *sums, int64_t totals[2]) {
  if (height < 1 || width < 1 || channels < 1 || channels > 4 || block < 1 || block > 8) return -1;
  find_kernels(NULL)->mask(now, reference, height, width, channels, block, sums, totals);
  return 0;
}

int32_t delta_copy_cells(uint8_t *to, const uint8_t *from, const uint8_t *changed, int32_t height,
                         int32_t width, int32_t channels, int32_t block) {
  if (block < 1) return -1;
  int64_t pitch = (int64_t)width * channels;
  int across = (width + block - 1) / block;
  for (int y = 0; y < height; y += block, changed += across)
    for (int end, x = next_run(changed, 0, across, &end); x < across;
         x = next_run(changed, end, across, &end)) {
      int64_t first = (int64_t)x * block * channels, last = (int64_t)end * block * channels;
      if (last > pitch) last = pitch;
      for (int row = y; row < y + block && row < height; row++)
        memcpy(to + row * pitch + first, from + row * pitch + first, (size_t)(last - first));
    }
  return 0;
}
