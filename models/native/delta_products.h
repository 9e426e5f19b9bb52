/* Convolutions, full and depthwise, over rows read anywhere: included by delta_kernels.h, per variant.
 *
 * Wants what that file wants and defines: vectors V, LOAD, KEEP and the bounds of an activation.
 */

/* ROWS x channels matrix product: to[at[r]][0..nb * LANES) = bias + sum of taps x weights. */
#define TILE(nb)                                                                                \
  static __attribute__((noinline)) TARGET void NAME(tile##nb)(                                  \
      const packed_step *step, const float *from, const int32_t *read, float *to,               \
      const int32_t *at, const float *w, const float *bias, int relu, int tail) {               \
    V sum[ROWS][nb];                                                                            \
    _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++)                                     \
        _Pragma("GCC unroll 16") for (int c = 0; c < nb; c++) sum[r][c] = LOAD(bias + c * LANES); \
    for (int t = 0; t < step->tap_count; t++) {                                                 \
      const float *row[ROWS];                                                                   \
      _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++) {                                 \
        row[r] = from + step->taps[t] + read[r];                                                \
        __asm__("" : "+r"(row[r])); /* one register each: no clever differences */              \
      }                                                                                         \
      for (int64_t k = 0; k < step->tap_length; k++, w += nb * LANES) {                         \
        V weight[nb];                                                                           \
        _Pragma("GCC unroll 16") for (int c = 0; c < nb; c++) {                                 \
          weight[c] = LOAD(w + c * LANES);                                                      \
          KEEP(weight[c]);                                                                      \
        }                                                                                       \
        _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++)                                 \
            _Pragma("GCC unroll 16") for (int c = 0; c < nb; c++) sum[r][c] +=                  \
            row[r][k] * weight[c];                                                              \
      }                                                                                         \
    }                                                                                           \
    if (relu)                                                                                   \
      _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++)                                   \
          _Pragma("GCC unroll 16") for (int c = 0; c < nb; c++) sum[r][c] =                     \
          NAME(most)(sum[r][c], 0.0f);                                                          \
    _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++)                                     \
        _Pragma("GCC unroll 16") for (int c = 0; c < nb - 1; c++) *(V *)(to + at[r] +           \
                                                                         c * LANES) = sum[r][c]; \
    if (tail >= LANES)                                                                          \
      _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++) *(V *)(to + at[r] +               \
                                                                     (nb - 1) * LANES) =        \
          sum[r][nb - 1];                                                                       \
    else {                                                                                      \
      float edge[ROWS][LANES]; /* indexing sum itself would keep all of it on the stack */      \
      _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++) *(V *)edge[r] = sum[r][nb - 1];   \
      for (int r = 0; r < ROWS; r++)                                                            \
        __builtin_memcpy(to + at[r] + (nb - 1) * LANES, edge[r], 4 * (size_t)tail);             \
    }                                                                                           \
  }

TILE(1)
TILE(2)
#if COLUMNS >= 3
TILE(3)
#endif
#if COLUMNS >= 4
TILE(4)
#endif
#undef TILE

/* `count` (a multiple of ROWS) rows of a convolution, read at from + read[r], put at to + at[r].
 * Columns beyond the last are written too, up to a full vector, unless `exact`. */
static TARGET void NAME(convolve)(const packed_step *step, const float *from,
                                  const int32_t *read, float *to, const int32_t *at, int count,
                                  int exact) {
  int columns = step->plan.outputs, vectors = (columns + LANES - 1) / LANES;
  int relu = step->plan.activation == RELU;
  int groups = (vectors + COLUMNS - 1) / COLUMNS;
  int64_t depth = (int64_t)step->tap_count * step->tap_length;
  const float *w = step->weight, *bias = step->bias;
  for (int g = 0, done = 0; g < groups; g++) {
    int nb = (vectors - done + groups - g - 1) / (groups - g);
    int tail = exact && done + nb == vectors ? columns - (vectors - 1) * LANES : LANES;
    for (int r = 0; r < count; r += ROWS) switch (nb) {
        case 1: NAME(tile1)(step, from, read + r, to, at + r, w, bias, relu, tail); break;
        case 2: NAME(tile2)(step, from, read + r, to, at + r, w, bias, relu, tail); break;
#if COLUMNS >= 3
        case 3: NAME(tile3)(step, from, read + r, to, at + r, w, bias, relu, tail); break;
#endif
#if COLUMNS >= 4
        case 4: NAME(tile4)(step, from, read + r, to, at + r, w, bias, relu, tail); break;
#endif
      }
    w += depth * nb * LANES, bias += nb * LANES, to += nb * LANES;
    done += nb;
  }
}

/* One vector of channels of a 3 x 3 depthwise convolution, for all rows. */
INLINE void NAME(nine)(const float *from, const int64_t *tap, const int32_t *read, float *to,
                       const int32_t *at, int count, const float *w, int padded, V bias,
                       int relu, int tail) {
  V w0 = LOAD(w), w1 = LOAD(w + padded), w2 = LOAD(w + 2 * padded);
  V w3 = LOAD(w + 3 * padded), w4 = LOAD(w + 4 * padded), w5 = LOAD(w + 5 * padded);
  V w6 = LOAD(w + 6 * padded), w7 = LOAD(w + 7 * padded), w8 = LOAD(w + 8 * padded);
  const float *high = from + tap[1], *middle = from + tap[4], *low = from + tap[7];
  int64_t side = tap[2] - tap[1];
  for (int r = 0; r < count; r++) {
    const float *a = high + read[r], *b = middle + read[r], *d = low + read[r];
    V one = bias + LOAD(a - side) * w0, two = LOAD(a) * w1, three = LOAD(a + side) * w2;
    one += LOAD(b - side) * w3, two += LOAD(b) * w4, three += LOAD(b + side) * w5;
    one += LOAD(d - side) * w6, two += LOAD(d) * w7, three += LOAD(d + side) * w8;
    one += two + three;
    if (relu) one = NAME(most)(one, 0.0f);
    if (tail >= LANES) *(V *)(to + at[r]) = one;
    else NAME(put)(to + at[r], one, tail);
  }
}

/* Rows of a depthwise convolution, one vector of channels after the other. */
static __attribute__((noinline)) TARGET void NAME(depthwise)(
    const packed_step *step, const float *from, const int32_t *read, float *to,
    const int32_t *at, int count, int exact) {
  int channels = step->plan.outputs, padded = (channels + LANES - 1) / LANES * LANES;
  int relu = step->plan.activation == RELU, taps = step->tap_count;
  const int64_t *tap = step->taps;
  for (int c = 0; c < channels; c += LANES, from += LANES, to += LANES) {
    const float *w = step->weight + c;
    V bias = LOAD(step->bias + c);
    int tail = exact ? channels - c : LANES;
    if (taps == 9) {
      if (tail < LANES) NAME(nine)(from, tap, read, to, at, count, w, padded, bias, relu, tail);
      else if (relu) NAME(nine)(from, tap, read, to, at, count, w, padded, bias, 1, LANES);
      else NAME(nine)(from, tap, read, to, at, count, w, padded, bias, 0, LANES);
      continue;
    }
    for (int r = 0; r < count; r += ROWS) {
      V sum[ROWS];
      _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; i++) sum[i] = bias;
      for (int t = 0; t < taps; t++) {
        V weight = LOAD(w + t * padded);
        _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; i++) sum[i] +=
            LOAD(from + tap[t] + read[r + i]) * weight;
      }
      _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; i++)
          NAME(put)(to + at[r + i], relu ? NAME(most)(sum[i], 0.0f) : sum[i], tail);
    }
  }
}
