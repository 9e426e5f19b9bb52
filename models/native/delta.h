/* The interface between delta.c and models/delta/native.py, and the program both share.
 *
 * A program is a compiled plan with packed weights; a state is one camera's activations, a plain
 * block of floats. Programs are not for concurrent use; states are independent of each other.
 */
#ifndef EDGE_NODE_DELTA_H
#define EDGE_NODE_DELTA_H

#include <stddef.h>
#include <stdint.h>

enum kind { CONV, DEPTHWISE, MAX, PICK, SELECT, JOIN, ADD, MULTIPLY, AFFINE, ACTIVATE };
enum activation { NONE, RELU, SILU, SIGMOID, CLIP, LEAKY, HARD_SIGMOID, HARD_SWISH, TANH };

typedef struct {
  int64_t offset; /* floats from the state's start to position (0, 0) and the map's first column */
  int64_t mask;   /* bytes from the masks' start */
  int32_t pitch;  /* positions from one line to the next, ring included */
  int32_t stride; /* floats from one position to the next */
  int32_t height, width, channels;
  int32_t watched; /* check that what is written is finite */
} delta_map;

typedef struct {
  int32_t kind, source, second, residual, target; /* maps; -1 is none */
  int32_t kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
  int32_t inputs, outputs; /* channels */
  int32_t chained, prunes;
  int32_t activation, after;
  float low, high, after_low, after_high;
  const float *weight, *bias;
  const int32_t *rows, *columns, *picked;
} delta_step;

typedef struct delta_program delta_program;

/* All return NULL or a negative number only when memory or arguments are lacking. */
delta_program *delta_create(const delta_map *maps, int32_t map_count, const delta_step *steps,
                            int32_t step_count, int32_t input, int64_t mask_bytes,
                            const char *variant);
void delta_free(delta_program *program);
const char *delta_variant(const delta_program *program);
int32_t delta_feed_bytes(delta_program *program, float *state, const uint8_t *pixels,
                         const uint8_t *changed, int32_t block, const float *mean,
                         const float *scale);
int32_t delta_feed_floats(delta_program *program, float *state, const float *pixels,
                          const uint8_t *changed, int32_t block);
/* `spent_ns` (or NULL) gathers the time of each chain at its last step.
   Returns 1 when something not finite was written to a watched map, else 0. */
int32_t delta_run(delta_program *program, float *state, const float *thresholds,
                  const float *dense_above, int32_t full, int32_t *dirty, int32_t *changed,
                  int64_t *spent_ns);

#define TILE_POSITIONS 64 /* at most so many positions pass through a chain at once, */
#define TILE_FLOATS 8192  /* and so many floats, that a tile stays in the first-level cache */

/* --- inside ------------------------------------------------------------------------------- */

typedef struct {
  delta_step plan;
  float *weight, *bias; /* packed for the variant's kernel */
  int32_t *rows, *columns, *picked;
  int64_t *taps; /* convolutions: floats from a window's first position to each run of taps */
  int32_t tap_count, tap_length;
} packed_step;

struct delta_program {
  delta_map *maps;
  packed_step *steps;
  int32_t map_count, step_count, input;
  uint8_t *masks, *line; /* line: one padded row of a mask while it is dilated */
  uint8_t *wanted;       /* the dirty set of the running step, where it is pruned */
  int32_t *list;         /* y << 16 | x of the dirty positions */
  float *tiles;          /* two tiles of rows, `tile_floats` each */
  int64_t tile_floats;
  const struct kernels *kernels;
};

typedef struct {
  float threshold;
  int32_t is_dense;   /* compute every position and compare nothing */
  const int32_t *list; /* unless dense */
  int32_t count;
  uint8_t *mask; /* where changed rows are marked, or NULL */
  int32_t changed, not_finite;
} job;

struct kernels {
  const char *name;
  int32_t lanes, rows, columns;
  /* Runs steps first..last (all but the last chained) for the job's positions. */
  void (*run)(const delta_program *program, float *state, int32_t first, int32_t last, job *job);
};

#endif
