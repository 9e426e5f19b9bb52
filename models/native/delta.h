/* The interface between delta.c and models/delta/native.py, and the program both share.
 *
 * A program is a compiled plan with packed weights; a state is one camera's activations, a plain
 * block of floats. Programs are not for concurrent use; states are independent of each other.
 */
#ifndef EDGE_NODE_DELTA_H
#define EDGE_NODE_DELTA_H

#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "masks are scanned by little-endian words: this processor keeps the graph executor"
#endif

enum kind { CONV, DEPTHWISE, MAX, PICK, SELECT, JOIN, ADD, MULTIPLY, AFFINE, ACTIVATE };
enum activation { NONE, RELU, SILU, SIGMOID, CLIP, LEAKY, HARD_SIGMOID, HARD_SWISH, TANH };

typedef struct {
  int64_t offset; /* floats from the state's (or scratch's) start to position (0, 0) and the map's first column */
  int64_t mask;   /* bytes from the masks' start */
  int32_t pitch;  /* positions from one line to the next, ring included */
  int32_t stride; /* floats from one position to the next */
  int32_t height, width, channels;
  int32_t watched;   /* check that what is written is finite */
  int32_t is_shared; /* in the program's scratch memory, not in the state */
} delta_map;

typedef struct {
  int32_t kind, source, second, residual, target; /* maps; -1 is none */
  int32_t kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
  int32_t inputs, outputs; /* channels */
  int32_t chained, prunes;
  int32_t activation, after;
  int32_t segment; /* equal for neighbours whose sets are found together */
  float low, high, after_low, after_high;
  const float *weight, *bias;
  const int32_t *rows, *columns, *picked;
} delta_step;

typedef struct delta_program delta_program;

typedef struct {
  const uint8_t *bytes; /* uint8[height][width][channels], or NULL: then floats likewise */
  const float *floats;
  float mean, scale;      /* what the network sees of bytes: (byte - mean) * scale */
  const uint8_t *changed; /* one byte per block x block pixels, or NULL for a full pass */
  int32_t block;
} delta_frame;

/* NULL when memory is lacking or the variant unknown. `scratch`: zeros for the shared maps; it must
   outlive the program. */
delta_program *delta_create(const delta_map *maps, int32_t map_count, const delta_step *steps,
                            int32_t step_count, int32_t input, int64_t mask_bytes,
                            float *scratch, const char *variant);
void delta_free(delta_program *program);
const char *delta_variant(const delta_program *program);
/* Bring a state up to a frame. Where nothing changed the frame must be what the state was computed
   from: windows at the edge of a change read it. `spent_ns` (or NULL) gathers the time of each
   chain at its last step. Returns 1 when something not finite was written to a watched map. */
int32_t delta_run(delta_program *program, float *state, const delta_frame *frame,
                  const float *thresholds, const float *dense_above, int32_t *dirty,
                  int32_t *changed, int64_t *spent_ns);
/* Write the sum of |now - reference| of every block x block cell (those at the border are cut) to
   sums[ceil(height / block)][ceil(width / block)], and of |d| and d over all to totals. At
   most 4 channels and blocks of 8, so that a cell's sum fits, else -1 is returned. */
int32_t delta_mask(const uint8_t *now, const uint8_t *reference, int32_t height, int32_t width,
                   int32_t channels, int32_t block, uint16_t *sums, int64_t totals[2]);
/* Copy the cells of an image whose byte in `changed` is set. */
int32_t delta_copy_cells(uint8_t *to, const uint8_t *from, const uint8_t *changed, int32_t height,
                         int32_t width, int32_t channels, int32_t block);

#define MASK_LINE 4096     /* bytes of an image row looked at together */
#define BAND_ROWS 32       /* rows of the image at a time in a full pass: activations stay in cache */
#define BAND_POSITIONS 512 /* but no fewer positions of a map */
#define TILE_POSITIONS 64  /* at most so many positions pass through a chain at once, */
#define TILE_FLOATS 8192   /* and so many floats, that a tile stays in the first-level cache */

/* --- inside ------------------------------------------------------------------------------- */

typedef struct {
  delta_step plan;
  float *weight, *bias; /* packed for the variant's kernel */
  int32_t *rows, *columns, *picked;
  int64_t *taps; /* convolutions: floats from a window's first position to each run of taps */
  int32_t tap_count, tap_length;
  double cost; /* multiply-accumulates of a position */
} packed_step;

struct delta_program {
  delta_map *maps;
  packed_step *steps;
  int32_t map_count, step_count, input;
  int32_t cell;             /* pixels of the image for one byte of its mask */
  int32_t reads_all_pixels; /* the image is read otherwise than through windows */
  float *scratch;           /* maps that no state holds: valid for the running segment only */
  uint8_t *masks, *needs;   /* dirty sets; needed sets of shared maps at the same places */
  uint8_t *line;            /* one padded row of a mask while it is dilated */
  int32_t *rows;            /* per map: how many rows a full pass has come down to */
  int32_t *list;            /* y << 16 | x of the positions to compute */
  float *tiles;             /* two tiles of rows, `tile_floats` each */
  int64_t tile_floats;
  const struct kernels *kernels;
};

typedef struct {
  float threshold;
  int32_t is_dense;   /* compute every position and compare nothing */
  const int32_t *list; /* unless dense */
  int32_t row, count;  /* how many positions; dense: from the start of this row on */
  uint8_t *mask; /* compare with what is there, and mark here where rows changed; or NULL */
  int32_t changed, not_finite;
} job;

struct kernels {
  const char *name;
  int32_t lanes, rows, columns;
  /* Runs steps first..last (all but the last chained) for the job's positions. */
  void (*run)(const delta_program *program, float *state, int32_t first, int32_t last, job *job);
  void (*convert)(float *to, const uint8_t *from, int count, float mean, float scale);
  void (*mask)(const uint8_t *now, const uint8_t *reference, int height, int width, int channels,
               int block, uint16_t *sums, int64_t totals[2]);
};

#endif
