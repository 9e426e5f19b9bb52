/* What differs between two 8-bit images, by cell: included by delta_kernels.h, per variant.
 *
 * Wants LANES, TARGET and NAME(x) as there. A line holds one u16 per byte of an image row:
 * the sum of |now - reference| down the rows of a cell, which cannot overflow (see delta.h).
 */

typedef uint8_t NAME(bytes) __attribute__((vector_size(LANES * 2), aligned(1), may_alias));
typedef int16_t NAME(words) __attribute__((vector_size(LANES * 4), aligned(1), may_alias));
typedef uint16_t NAME(sums) __attribute__((vector_size(LANES * 4), aligned(1), may_alias));
typedef int32_t NAME(ints) __attribute__((vector_size(LANES * 4), aligned(1), may_alias));

/* Sum `rows` rows of `bytes` differences down into a line; return the sum of signed ones. */
static TARGET int64_t NAME(sum_down)(const uint8_t *now, const uint8_t *reference, int64_t pitch,
                                     int rows, int bytes, uint16_t *line) {
  NAME(ints) even = {0}, odd = {0};
  int64_t sum = 0;
  int i = 0;
  for (; i + 2 * LANES <= bytes; i += 2 * LANES) {
    NAME(words) distance = {0}, balance = {0};
    for (int y = 0; y < rows; y++) {
      /* The reference was last touched a frame ago: fetch the next row of cells meanwhile. */
      __builtin_prefetch(now + (y + rows) * pitch + i);
      __builtin_prefetch(reference + (y + rows) * pitch + i);
      NAME(bytes) a = *(const NAME(bytes) *)(now + y * pitch + i);
      NAME(bytes) b = *(const NAME(bytes) *)(reference + y * pitch + i);
      NAME(words) d = __builtin_convertvector(a, NAME(words));
      d -= __builtin_convertvector(b, NAME(words));
      NAME(words) sign = d >> 15;
      distance += (d ^ sign) - sign;
      balance += d;
    }
    *(NAME(words) *)(line + i) = distance;
    even += (NAME(ints))balance << 16 >> 16;
    odd += (NAME(ints))balance >> 16;
  }
  for (; i < bytes; i++) {
    line[i] = 0;
    for (int y = 0; y < rows; y++) {
      int d = now[y * pitch + i] - reference[y * pitch + i];
      line[i] = (uint16_t)(line[i] + (d < 0 ? -d : d));
      sum += d;
    }
  }
  even += odd;
  for (int lane = 0; lane < LANES; lane++) sum += even[lane];
  return sum;
}

/* Leave in line[i] the sum of line[i..i + width), for every i that starts a group of `width`. */
static TARGET void NAME(sum_across)(uint16_t *line, int count, int width) {
  for (; width % 2 == 0; width /= 2)
    for (int i = 0; i < count; i += 2 * LANES)
      *(NAME(sums) *)(line + i) += *(const NAME(sums) *)(line + i + width / 2);
  for (int i = 0; i < count && width > 1; i += 2 * LANES) {
    NAME(sums) sum = *(const NAME(sums) *)(line + i);
    for (int j = 1; j < width; j++) sum += *(const NAME(sums) *)(line + i + j);
    *(NAME(sums) *)(line + i) = sum;
  }
}

static TARGET void NAME(mask)(const uint8_t *now, const uint8_t *reference, int height, int width,
                              int channels, int block, uint16_t *sums, int64_t totals[2]) {
  uint16_t line[MASK_LINE + 64];
  int across = block * channels, most = MASK_LINE / across, cells = (width + block - 1) / block;
  int64_t pitch = (int64_t)width * channels;
  totals[0] = totals[1] = 0;
  for (int y = 0; y < height; y += block) {
    int rows = height - y < block ? height - y : block;
    for (int from = 0; from < cells; from += most, sums += most) {
      int count = cells - from < most ? cells - from : most;
      int64_t start = (int64_t)from * across, bytes = pitch - start;
      bytes = bytes < count * across ? bytes : count * across;
      int64_t at = y * pitch + start;
      totals[1] += NAME(sum_down)(now + at, reference + at, pitch, rows, (int)bytes, line);
      memset(line + bytes, 0, 2 * (size_t)(count * across - bytes + 64));
      NAME(sum_across)(line, count * across, across);
      for (int i = 0; i < count; i++) totals[0] += sums[i] = line[i * across];
      if (from + count == cells) sums += count - most;
    }
  }
}
