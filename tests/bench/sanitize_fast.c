/* See sanitize_fast.sh. Every input lies in memory of exactly its size, so that a byte read beyond it is seen. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int pairmill_jpeg_is_sound(const uint8_t *data, size_t size);
int pairmill_shrink(const uint8_t *source, int height, int width, uint8_t *to, int target_height, int target_width);

static uint64_t state;

static size_t below(size_t limit) { /* xorshift */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % limit;
}

/* One of: bits flipped, bytes replaced, the end cut off, bytes dropped. Two thirds of the places lie behind the headers. */
static uint8_t *mutated(const uint8_t *good, size_t size, size_t *made) {
    size_t scan = 0, kind = below(5);
    for (size_t at = 0; at + 1 < size && !scan; at++)
        if (good[at] == 0xFF && good[at + 1] == 0xDA)
            scan = at;
    size_t first = below(3) ? scan : 0, at = first + below(size - first), dropped = 1 + below(40);
    *made = kind == 3 ? 2 + below(size - 2) : kind == 4 && at + dropped < size ? size - dropped : size;
    uint8_t *data = malloc(*made);
    memcpy(data, good, kind == 4 && *made < size ? at : *made);
    if (kind == 4 && *made < size)
        memcpy(data + at, good + at + dropped, *made - at);
    for (size_t n = 1 + below(4); kind < 3 && n; n--) {
        size_t place = first + below(size - first);
        data[place] = kind ? (uint8_t)below(256) : data[place] ^ (uint8_t)(1 << below(8));
    }
    return data;
}

static void shrink_one(void) {
    int height = 1 + (int)below(200), width = 1 + (int)below(200), high = 1 + (int)below((size_t)height), wide = 1 + (int)below((size_t)width);
    uint8_t *from = malloc(3 * (size_t)height * (size_t)width), *to = malloc(3 * (size_t)high * (size_t)wide);
    for (int at = 0; at < 3 * height * width; at++)
        from[at] = (uint8_t)below(256);
    pairmill_shrink(from, height, width, to, high, wide);
    free(from);
    free(to);
}

int main(int count, char **words) {
    static uint8_t good[1 << 22];
    long files = 0, sound = 0;
    state = strtoull(words[1], NULL, 10);
    for (int round = 0; round < atoi(words[2]); round++, shrink_one())
        for (int word = 3; word < count; word++) {
            FILE *file = fopen(words[word], "rb");
            size_t size = file ? fread(good, 1, sizeof good, file) : 0;
            if (file)
                fclose(file);
            for (int n = 0; n < 6 && size > 4; n++, files++) {
                size_t made;
                uint8_t *data = mutated(good, size, &made);
                sound += pairmill_jpeg_is_sound(data, made);
                free(data);
            }
        }
    printf("%ld mutated files, %ld sound, no finding\n", files, sound);
    return 0;
}
