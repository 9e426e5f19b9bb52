/* Runs one program of the native delta kernels from a file, for processors without Python:
 * a full pass over one frame, a sparse one over the next; writes the state after both.
 * The file is made by test_delta_arm.py; pointers in it are offsets + 1 into its last part. */
#include <stdio.h>
#include <stdlib.h>

#include "delta.h"

static void *take(FILE *file, size_t bytes) {
  void *memory = calloc(1, bytes + 64);
  if (!memory || fread(memory, 1, bytes, file) != bytes) exit(2);
  return memory;
}

#define RESOLVE(field) \
  if (steps[i].field) steps[i].field = (const void *)(blob + ((uintptr_t)steps[i].field - 1))

int main(int count, char **names) {
  FILE *file = count == 3 ? fopen(names[1], "rb") : NULL;
  if (!file) return 2;
  int64_t *head = take(file, 8 * sizeof *head);
  int64_t maps_n = head[0], steps_n = head[1], floats = head[3], pixels = head[5];
  delta_map *maps = take(file, (size_t)maps_n * sizeof *maps);
  delta_step *steps = take(file, (size_t)steps_n * sizeof *steps);
  float *first = take(file, 12 * (size_t)pixels), *second = take(file, 12 * (size_t)pixels);
  uint8_t *mask = take(file, (size_t)pixels);
  char *blob = take(file, (size_t)head[6]);
  for (int64_t i = 0; i < steps_n; i++) {
    RESOLVE(weight);
    RESOLVE(bias);
    RESOLVE(rows);
    RESOLVE(columns);
    RESOLVE(picked);
  }
  float *scratch = calloc((size_t)head[7] + 16, sizeof *scratch);
  delta_program *program =
      delta_create(maps, maps_n, steps, steps_n, head[2], head[4], scratch, "");
  float *state = calloc((size_t)floats + 16, sizeof *state);
  float *thresholds = calloc((size_t)steps_n, sizeof *thresholds);
  float *above = calloc((size_t)steps_n, sizeof *above);
  int32_t *dirty = calloc((size_t)steps_n, 8), *changed = dirty + steps_n;
  if (!scratch || !program || !state || !thresholds || !above || !dirty) return 3;
  for (int64_t i = 0; i < steps_n; i++) above[i] = 2;
  delta_frame before = {NULL, first, 0, 1, NULL, 1}, after = {NULL, second, 0, 1, mask, 1};
  if (delta_run(program, state, &before, thresholds, above, dirty, changed, NULL)) return 4;
  if (delta_run(program, state, &after, thresholds, above, dirty, changed, NULL)) return 5;
  FILE *out = fopen(names[2], "wb");
  if (!out || fwrite(state, sizeof *state, (size_t)floats, out) != (size_t)floats) return 6;
  fclose(out);
  printf("%s\n", delta_variant(program));
  delta_free(program);
  return 0;
}
