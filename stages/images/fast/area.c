/* OpenCV's area filter (cv::resize with INTER_AREA, resize.cpp) for pictures of 8-bit RGB that become smaller, the same to the bit.
 *
 * A pixel of the result is the mean of the source pixels under it, those at the border by the share that lies there. OpenCV sums in
 * float32: along a row first, then rows. The sums here have the same terms in the same order, so they round alike; they are faster
 * because the channels of a pixel are one vector and each row is summed once. Compiled without contraction to fused operations.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define ROWS 4

typedef float Pixel __attribute__((vector_size(16)));

typedef struct {
    int from;  /* of the source */
    int count; /* pixels that share in this one */
    float first, inner, last; /* share of the first, of those between, of the last */
} Span;

/* What OpenCV's computeResizeAreaTab gives for one axis. */
static void make_spans(Span *spans, int source, int target) {
    double scale = 1. / ((double)target / source);
    for (int at = 0; at < target; at++) {
        double begin = at * scale, end = begin + scale;
        double cell = scale < source - begin ? scale : source - begin;
        int low = (int)ceil(begin), high = (int)floor(end);
        high = high < source - 1 ? high : source - 1;
        low = low < high ? low : high;
        Span span = {low, high - low, 0, (float)(1.0 / cell), 0};
        span.first = span.last = span.inner;
        if (low - begin > 1e-3) {
            span.from--;
            span.count++;
            span.first = (float)((low - begin) / cell);
            if (span.count == 1)
                span.last = span.first;
        }
        if (end - high > 1e-3) {
            double share = end - high < 1. ? end - high : 1.;
            span.count++;
            span.last = (float)((share < cell ? share : cell) / cell);
            if (span.count == 1)
                span.first = span.last;
        }
        spans[at] = span;
    }
}

/* Four bytes as floats: a pixel and one byte more. */
static inline __attribute__((always_inline)) Pixel load(const uint8_t *at) {
#ifdef __SSE2__
    int bytes;
    memcpy(&bytes, at, sizeof bytes);
    __m128i zero = _mm_setzero_si128(), words = _mm_unpacklo_epi8(_mm_cvtsi32_si128(bytes), zero);
    return (Pixel)_mm_cvtepi32_ps(_mm_unpacklo_epi16(words, zero));
#else
    Pixel pixel = {(float)at[0], (float)at[1], (float)at[2], 0};
    return pixel;
#endif
}

/* Sums along ROWS rows: side by side, since one sum after the other is mostly waiting. */
static inline __attribute__((always_inline)) void sum_along(const uint8_t *const *rows, const Span *spans, int target, Pixel *sums) {
    for (int at = 0; at < target; at++) {
        const Span span = spans[at];
        size_t from = 3 * (size_t)span.from;
        Pixel sum[ROWS];
        for (int row = 0; row < ROWS; row++)
            sum[row] = load(rows[row] + from) * span.first;
        for (int n = span.count - 2; n > 0; n--) {
            from += 3;
            for (int row = 0; row < ROWS; row++)
                sum[row] += load(rows[row] + from) * span.inner;
        }
        for (int row = 0; row < ROWS && span.count > 1; row++)
            sum[row] += load(rows[row] + from + 3) * span.last;
        for (int row = 0; row < ROWS; row++)
            sums[row * target + at] = sum[row];
    }
}

/* The nearest integers, halves to even, as OpenCV's cvRound; no sum is far from 0 to 255. */
static inline __attribute__((always_inline)) void round_to(uint8_t *to, Pixel sum) {
#ifdef __SSE2__
    __m128i values = _mm_cvtps_epi32((__m128)sum);
    values = _mm_packs_epi32(values, values);
    int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(values, values));
    memcpy(to, &bytes, 3);
#else
    for (int channel = 0; channel < 3; channel++) {
        long value = lrintf(sum[channel]);
        to[channel] = (uint8_t)(value > 255 ? 255 : value);
    }
#endif
}

typedef struct {
    const uint8_t *source;
    uint8_t *to;
    int height, width, target_height, target_width;
    Span *down, *across;
    Pixel *sums, *along; /* of a row of the result; of ROWS rows of the source along them */
    uint8_t *last_row; /* a copy of the last row with a byte behind it */
} Picture;

static inline __attribute__((always_inline)) void sum_rows(const Picture *picture, int first) {
    const uint8_t *rows[ROWS];
    for (int n = 0; n < ROWS; n++) {
        int row = first + n < picture->height ? first + n : picture->height - 1;
        rows[n] = row == picture->height - 1 ? picture->last_row : picture->source + 3 * (size_t)picture->width * (size_t)row;
    }
    sum_along(rows, picture->across, picture->target_width, picture->along);
}

static void shrink(const Picture *picture) {
    int next = 0, target = picture->target_width; /* rows before `next` are summed, the last ROWS of them are there */
    for (int at = 0; at < picture->target_height; at++) {
        const Span span = picture->down[at];
        for (int n = 0; n < span.count; n++) {
            float share = n == 0 ? span.first : n == span.count - 1 ? span.last : span.inner;
            for (; span.from + n >= next; next += ROWS)
                sum_rows(picture, next);
            const Pixel *along = picture->along + (span.from + n - next + ROWS) * target;
            if (n == 0)
                for (int x = 0; x < target; x++)
                    picture->sums[x] = along[x] * share;
            else
                for (int x = 0; x < target; x++)
                    picture->sums[x] += along[x] * share;
        }
        for (int x = 0; x < target; x++)
            round_to(picture->to + 3 * ((size_t)target * (size_t)at + (size_t)x), picture->sums[x]);
    }
}

/* uint8 [height, width, 3] to [target_height, target_width, 3], neither larger than the source. 0 where it is, or for want of memory. */
int pairmill_shrink(const uint8_t *source, int height, int width, uint8_t *to, int target_height, int target_width) {
    if (target_height < 1 || target_width < 1 || height < target_height || width < target_width || width > 1 << 20 || height > 1 << 20)
        return 0;
    size_t row = 3 * (size_t)width, pixels = sizeof(Pixel) * (size_t)target_width;
    Picture picture = {source, to, height, width, target_height, target_width, NULL, NULL, NULL, NULL, NULL};
    picture.down = malloc(sizeof(Span) * (size_t)target_height);
    picture.across = malloc(sizeof(Span) * (size_t)target_width);
    picture.sums = aligned_alloc(sizeof(Pixel), pixels);
    picture.along = aligned_alloc(sizeof(Pixel), ROWS * pixels);
    picture.last_row = malloc(row + 1);
    int done = picture.down && picture.across && picture.sums && picture.along && picture.last_row;
    if (done) {
        memcpy(picture.last_row, source + row * (size_t)(height - 1), row);
        picture.last_row[row] = 0;
        make_spans(picture.down, height, target_height);
        make_spans(picture.across, width, target_width);
        shrink(&picture);
    }
    free(picture.down);
    free(picture.across);
    free(picture.sums);
    free(picture.along);
    free(picture.last_row);
    return done;
}
