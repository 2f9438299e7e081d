/* Is the entropy-coded data of a baseline JPEG whole? Every Huffman code is read and every block counted; no coefficient is made.
 *
 * What a decoder does with the codes afterwards (dequantisation, inverse transform, colours) cannot fail. The answer is 1 only
 * where nothing at all is unusual; anything else, sound or not, is 0 and is left to libjpeg. So this code may be narrower than
 * libjpeg, never wider: ITU T.81 annexes B, C and F, with the further limits of libjpeg-turbo's jdmarker.c and jdhuff.c.
 *
 * Two things make it fast. One look into a table of 12 bits tells the length of as many whole codes as lie in them, for of a
 * coefficient's own bits only the number counts. And one thread reads at three places in turns, since one look waits for the one
 * before: two further readers start at a third and two thirds, at a guess, and note where each of their MCUs begins; streams of
 * Huffman codes fall into step by themselves. Where an MCU of the first reader begins at a bit at which one of the second's began,
 * what follows is what the second has read: nothing that is checked here carries over from one MCU to the next. Where that never
 * happens, the first reads everything.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INDEX_BITS 12
#define INDICES (1u << INDEX_BITS)
#define MAX_COMPONENTS 3
#define MAX_MCU_BLOCKS 10
#define MAX_COMPONENT_BLOCKS (1u << 20) /* sums of DC values, at most 2047 each, stay below 2^31, beyond which libjpeg refuses */
#define MAX_BYTES ((size_t)1 << 28)     /* places in bits fit into 32 bits */
#define PAD (MAX_MCU_BLOCKS * 256 + 16) /* a block has at most (16 + 11) + 63 * (16 + 15) < 2048 bits */
#define SPLIT_BYTES 2048                /* less is not worth further readers */

/* An entry of a table: in the low 6 bits how many bits are read, above them by how many coefficients the block advances. */
#define ENTRY(bits, advance) ((bits) | (advance) << 6)
#define BITS(entry) ((entry) & 63)
#define ADVANCE(entry) ((entry) >> 6)
#define BLOCK_ENDS 128 /* added to the advance: the last code that was read ends the block */
#define LOOK_CLOSER 64 /* in place of an advance: a code of more than 12 bits, or none, or one left to libjpeg */

typedef struct {
    int built;
    uint8_t counts[17], symbols[256];
    int32_t last[17], offset[17]; /* per length: largest code or -1; from a code to the place of its symbol */
    uint16_t one[INDICES];        /* the first code alone */
    uint16_t many[INDICES];       /* for AC: as many codes as lie in the index whole */
} Huffman;

typedef struct {
    uint8_t id, horizontal, vertical, quantisation;
} Component;

typedef struct {
    unsigned width, height, components, restart_interval;
    uint8_t quantisation_defined[4], huffman_defined[2][4]; /* DC, AC */
    Component component[MAX_COMPONENTS];
    unsigned blocks; /* of an MCU, and the tables of each */
    const Huffman *dc[MAX_MCU_BLOCKS], *ac[MAX_MCU_BLOCKS];
    const uint8_t *bits; /* entropy-coded bytes without stuffing, PAD bytes behind them */
    uint64_t end;        /* of them, in bits */
} Jpeg;

/* What a thread keeps from one image to the next: most have the same Huffman codes, and fresh memory costs time. */
typedef struct {
    Huffman tables[2][4];
    uint8_t *bits;
    uint32_t *begins;
    size_t bits_size, begins_size;
} Kept;

#define MOST_KEPT ((size_t)1 << 20) /* bytes of a buffer */
static _Thread_local Kept *kept_by_thread;

typedef struct {
    uint64_t place;        /* in bits */
    uint32_t mcus;         /* that were read whole */
    unsigned last, block;  /* last coefficient that is known, block of the MCU */
    const uint16_t *many;  /* of that block */
} Reader;

enum { GOES_ON, MCU_READ, ODD };

static unsigned be16(const uint8_t *at) { return (unsigned)at[0] << 8 | at[1]; }

/* The 57 or more bits from `place` on, at the top of the word. */
static inline uint64_t peek(const uint8_t *bits, uint64_t place) {
    uint64_t word;
    memcpy(&word, bits + (place >> 3), 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word << (place & 7);
}

/* ---- tables ---- */

static unsigned entry_of(int is_ac, unsigned symbol, unsigned length) {
    unsigned run = symbol >> 4, bits = symbol & 15;
    if (!is_ac)
        return symbol > 11 ? ENTRY(0, LOOK_CLOSER) : length + symbol; /* samples of 8 bits differ by at most 11 bits */
    if (bits)
        return ENTRY(length + bits, run + 1);
    if (run == 15)
        return ENTRY(length, 16);
    return run ? ENTRY(0, LOOK_CLOSER) : ENTRY(length, BLOCK_ENDS);
}

/* The entry of the first code of a word whose top bits are given, whatever its length. */
static unsigned entry_at(const Huffman *table, int is_ac, uint64_t word) {
    for (unsigned length = 1; length <= 16; length++) {
        int32_t code = (int32_t)(word >> (64 - length));
        if (code <= table->last[length])
            return entry_of(is_ac, table->symbols[code + table->offset[length]], length);
    }
    return ENTRY(0, LOOK_CLOSER);
}

static void join_codes(Huffman *table, const uint8_t *lengths) {
    for (unsigned index = 0; index < INDICES; index++) {
        unsigned used = 0, advance = 0;
        while (used < INDEX_BITS) {
            unsigned rest = index << used & (INDICES - 1), entry = table->one[rest];
            if (!lengths[rest] || used + lengths[rest] > INDEX_BITS || ADVANCE(entry) == LOOK_CLOSER)
                break; /* a code that is longer than what is left was looked up with made-up zeros */
            if (advance + (ADVANCE(entry) & 127) > 63)
                break;
            used += BITS(entry);
            advance += ADVANCE(entry);
            if (advance >= BLOCK_ENDS)
                break;
        }
        table->many[index] = (uint16_t)(used ? ENTRY(used, advance) : ENTRY(0, LOOK_CLOSER));
    }
}

/* Fill in the tables of a Huffman code. 0 where the lengths make no code, or one with a code of ones only, which libjpeg refuses. */
static int build(Huffman *table, int is_ac) {
    uint8_t lengths[INDICES];
    unsigned code = 0, at = 0;
    memset(lengths, 0, sizeof lengths);
    for (unsigned index = 0; index < INDICES; index++)
        table->one[index] = ENTRY(0, LOOK_CLOSER);
    for (unsigned length = 1; length <= 16; length++, code <<= 1) {
        table->offset[length] = (int32_t)at - (int32_t)code;
        for (unsigned n = table->counts[length]; n; n--, code++, at++) {
            if (code + 1 >= 1u << length || (!is_ac && table->symbols[at] > 15))
                return 0;
            if (length > INDEX_BITS)
                continue;
            unsigned spare = INDEX_BITS - length, entry = entry_of(is_ac, table->symbols[at], length);
            for (unsigned index = code << spare; index < (code + 1) << spare; index++) {
                table->one[index] = (uint16_t)entry;
                lengths[index] = (uint8_t)length;
            }
        }
        table->last[length] = table->counts[length] ? (int32_t)code - 1 : -1;
    }
    if (is_ac)
        join_codes(table, lengths);
    return table->built = 1;
}

/* ---- reading ---- */

/* A DC code. 0 bits where it is odd. */
static inline unsigned dc_bits(const Huffman *table, uint64_t word) {
    unsigned entry = table->one[word >> (64 - INDEX_BITS)];
    if (__builtin_expect(ADVANCE(entry) != LOOK_CLOSER, 1))
        return entry;
    entry = entry_at(table, 0, word);
    return ADVANCE(entry) == LOOK_CLOSER ? 0 : entry;
}

/* Begin the present block: its DC value. */
static inline __attribute__((always_inline)) int begin_block(const Jpeg *jpeg, Reader *reader) {
    unsigned bits = dc_bits(jpeg->dc[reader->block], peek(jpeg->bits, reader->place));
    reader->place += bits;
    reader->last = 0;
    reader->many = jpeg->ac[reader->block]->many;
    return bits ? GOES_ON : ODD;
}

/* One AC code by itself, where several at once cannot be. The entry; LOOK_CLOSER where it is odd. */
static __attribute__((noinline)) unsigned single_entry(const Huffman *table, uint64_t word) {
    unsigned entry = table->one[word >> (64 - INDEX_BITS)];
    return ADVANCE(entry) == LOOK_CLOSER ? entry_at(table, 1, word) : entry;
}

/* Read on by one or two looks into the tables, each of at most 12 + 15 bits. MCU_READ: the reader stands at the beginning of an MCU,
 * of which nothing is read. A reader never goes further than an MCU beyond the end: PAD bytes. */
static inline __attribute__((always_inline)) int read_on(const Jpeg *jpeg, Reader *reader) {
    uint64_t word = peek(jpeg->bits, reader->place);
    unsigned entry = reader->many[word >> (64 - INDEX_BITS)];
    unsigned last = reader->last + ADVANCE(entry);
    if (__builtin_expect(last < 63, 1)) {
        reader->last = last;
        reader->place += BITS(entry);
        word <<= BITS(entry);
        entry = reader->many[word >> (64 - INDEX_BITS)];
        last = reader->last + ADVANCE(entry);
        if (__builtin_expect(last < 63, 1)) {
            reader->last = last;
            reader->place += BITS(entry);
            return GOES_ON;
        }
    }
    if (last != 63 && (last < BLOCK_ENDS || last - BLOCK_ENDS >= 63)) {
        entry = single_entry(jpeg->ac[reader->block], word);
        last = reader->last + ADVANCE(entry);
        if (ADVANCE(entry) == LOOK_CLOSER || (ADVANCE(entry) < BLOCK_ENDS && last > 63))
            return ODD;
        if (last < 63) {
            reader->last = last;
            reader->place += BITS(entry);
            return GOES_ON;
        }
    }
    reader->place += BITS(entry);
    if (++reader->block < jpeg->blocks)
        return begin_block(jpeg, reader);
    if (reader->place > jpeg->end)
        return ODD;
    reader->block = 0;
    reader->mcus++;
    return MCU_READ;
}

static inline int at_end(const Jpeg *jpeg, const Reader *reader) { return jpeg->end - reader->place < 8; }

/* From where the reader stands to the end of `mcus` MCUs, which must be that of the data. */
static inline __attribute__((always_inline)) int read_rest(const Jpeg *jpeg, Reader *reader, int state, uint32_t mcus) {
    for (;;) {
        while (state == GOES_ON)
            state = read_on(jpeg, reader);
        if (state == ODD || reader->mcus >= mcus)
            return state == MCU_READ && reader->mcus == mcus && at_end(jpeg, reader);
        state = begin_block(jpeg, reader);
    }
}

/* A reader that began at a guess, the places at which its MCUs began, and how many of them lie before the reader it runs ahead of. */
typedef struct {
    Reader reader;
    int state, reads;
    uint32_t *begins, seen; /* room for as many places as there are MCUs, and one */
} Guess;

static inline __attribute__((always_inline)) Guess guess_at(const Jpeg *jpeg, uint64_t place, uint32_t *begins) {
    Guess guess = {{place, 0, 0, 0, NULL}, GOES_ON, 1, begins, 0};
    begins[0] = (uint32_t)place;
    guess.state = begin_block(jpeg, &guess.reader);
    return guess;
}

/* What follows where a guess has read an MCU, or something odd: then it is not in step, and begins again one bit further. */
static inline __attribute__((always_inline)) void guess_on(const Jpeg *jpeg, Guess *guess, uint32_t mcus) {
    Reader *reader = &guess->reader;
    if (guess->state == MCU_READ && reader->mcus < mcus) {
        guess->begins[reader->mcus] = (uint32_t)reader->place;
        if (at_end(jpeg, reader))
            guess->reads = 0;
        else
            guess->state = begin_block(jpeg, reader);
        return;
    }
    *guess = guess_at(jpeg, (uint64_t)guess->begins[0] + 1, guess->begins);
    guess->reads = reader->place + 64 < jpeg->end;
}

/* 1 where the guess began one of its MCUs at this place. */
static inline __attribute__((always_inline)) int in_step(Guess *guess, uint64_t place) {
    while (guess->seen <= guess->reader.mcus && guess->begins[guess->seen] < place)
        guess->seen++;
    return guess->seen <= guess->reader.mcus && guess->begins[guess->seen] == place;
}

/* `lead` to the end of `mcus` MCUs, with the help of a guess. */
static inline __attribute__((always_inline)) int read_by_two(const Jpeg *jpeg, Reader lead, int state, Guess guess, uint32_t mcus, uint32_t most) {
    for (;;) {
        if (state == GOES_ON)
            state = read_on(jpeg, &lead);
        if (guess.reads && guess.state == GOES_ON)
            guess.state = read_on(jpeg, &guess.reader);
        if (__builtin_expect(state == GOES_ON && guess.state == GOES_ON, 1))
            continue;
        if (guess.reads && guess.state != GOES_ON)
            guess_on(jpeg, &guess, most);
        if (state == ODD)
            return 0;
        if (state == MCU_READ) {
            if (lead.mcus >= mcus)
                return lead.mcus == mcus && at_end(jpeg, &lead);
            if (in_step(&guess, lead.place))
                return read_rest(jpeg, &guess.reader, guess.state, mcus - lead.mcus + guess.seen);
            state = begin_block(jpeg, &lead);
        }
    }
}

/* Three readers, see the head of this file. `begins`: room for twice `mcus` + 1 places. */
static inline __attribute__((always_inline)) int read_by_three(const Jpeg *jpeg, uint32_t mcus, uint32_t *begins) {
    Reader first = {0, 0, 0, 0, NULL};
    int state = begin_block(jpeg, &first);
    Guess second = guess_at(jpeg, jpeg->end / 24 * 8, begins), third = guess_at(jpeg, jpeg->end / 12 * 8, begins + mcus + 1);
    for (;;) {
        if (state == GOES_ON)
            state = read_on(jpeg, &first);
        if (second.reads && second.state == GOES_ON)
            second.state = read_on(jpeg, &second.reader);
        if (third.reads && third.state == GOES_ON)
            third.state = read_on(jpeg, &third.reader);
        if (__builtin_expect((state | second.state | third.state) == GOES_ON, 1))
            continue;
        if (second.reads && second.state != GOES_ON)
            guess_on(jpeg, &second, mcus);
        if (third.reads && third.state != GOES_ON)
            guess_on(jpeg, &third, mcus);
        if (state == ODD)
            return 0;
        if (state == MCU_READ) {
            if (first.mcus == mcus)
                return at_end(jpeg, &first);
            if (in_step(&second, first.place))
                return read_by_two(jpeg, second.reader, second.state, third, mcus - first.mcus + second.seen, mcus);
            state = begin_block(jpeg, &first);
        }
    }
}

/* The entropy-coded data of one interval: `mcus` MCUs and nothing else. `begins`: room for twice `mcus` + 1 places. */
static inline __attribute__((always_inline)) int read_interval(const Jpeg *jpeg, uint32_t mcus, uint32_t *begins) {
    Reader reader = {0, 0, 0, 0, NULL};
    if (jpeg->end >= 8 * SPLIT_BYTES)
        return read_by_three(jpeg, mcus, begins);
    return read_rest(jpeg, &reader, begin_block(jpeg, &reader), mcus);
}

static int read_anywhere(const Jpeg *jpeg, uint32_t mcus, uint32_t *begins) { return read_interval(jpeg, mcus, begins); }

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("bmi,bmi2"))) static int read_with_bmi2(const Jpeg *jpeg, uint32_t mcus, uint32_t *begins) {
    return read_interval(jpeg, mcus, begins);
}
#define READ (__builtin_cpu_supports("bmi2") ? read_with_bmi2 : read_anywhere)
#else
#define READ read_anywhere
#endif

/* Copy entropy-coded bytes up to the next marker, without the zeros that are stuffed behind 0xFF. Bytes read; 0 where no marker comes. */
static size_t unstuff(const uint8_t *from, size_t size, uint8_t *to, size_t *copied) {
    size_t at = 0, made = 0;
    for (;;) {
        const uint8_t *found = memchr(from + at, 0xFF, size - at);
        if (!found || (size_t)(found - from) + 1 >= size)
            return 0;
        size_t next = (size_t)(found - from);
        memcpy(to + made, from + at, next - at);
        made += next - at;
        if (from[next + 1]) {
            *copied = made;
            return next;
        }
        to[made++] = 0xFF;
        at = next + 2;
    }
}

/* `*buffer` with room for `size` bytes; what it held is lost. */
static void *with_room(void **buffer, size_t *has, size_t size) {
    if (*has < size) {
        free(*buffer);
        *buffer = malloc(size);
        *has = *buffer ? size : 0;
    }
    return *buffer;
}

static void give_back_much(void **buffer, size_t *has) {
    if (*has <= MOST_KEPT)
        return;
    free(*buffer);
    *buffer = NULL;
    *has = 0;
}

/* The scan, which begins at `from`, interval after interval. `bits`: room for `size` + PAD bytes, `begins` for twice `mcus` + 1 places. */
static int read_scan(Jpeg *jpeg, const uint8_t *from, size_t size, uint32_t mcus, uint8_t *bits, uint32_t *begins) {
    for (unsigned restarts = 0;; restarts = (restarts + 1) & 7) {
        size_t copied, used = unstuff(from, size, bits, &copied);
        uint32_t wanted = jpeg->restart_interval && jpeg->restart_interval < mcus ? jpeg->restart_interval : mcus;
        if (!used)
            return 0;
        memset(bits + copied, 0, PAD);
        jpeg->bits = bits;
        jpeg->end = 8 * (uint64_t)copied;
        if (!READ(jpeg, wanted, begins))
            return 0;
        mcus -= wanted;
        if (!mcus)
            return from[used + 1] == 0xD9;
        if (from[used + 1] != 0xD0 + restarts)
            return 0;
        from += used + 2;
        size -= used + 2;
    }
}

static int check_scan(Jpeg *jpeg, Kept *kept, const uint8_t *from, size_t size, uint32_t mcus) {
    uint8_t *bits = with_room((void **)&kept->bits, &kept->bits_size, size + PAD);
    uint32_t *begins = with_room((void **)&kept->begins, &kept->begins_size, 2 * sizeof(uint32_t) * ((size_t)mcus + 1));
    int sound = bits && begins && read_scan(jpeg, from, size, mcus, bits, begins);
    give_back_much((void **)&kept->bits, &kept->bits_size);
    give_back_much((void **)&kept->begins, &kept->begins_size);
    return sound;
}

/* ---- segments; `body` has `size` bytes behind the length ---- */

static int read_huffman_tables(Jpeg *jpeg, Kept *kept, const uint8_t *body, size_t size) {
    while (size >= 17) {
        unsigned kind = body[0] >> 4, number = body[0] & 15, symbols = 0;
        if (kind > 1 || number > 3)
            return 0;
        for (unsigned length = 1; length <= 16; length++)
            symbols += body[length];
        if (!symbols || symbols > 256 || 17 + symbols > size)
            return 0;
        Huffman *table = &kept->tables[kind][number];
        if (!table->built || memcmp(table->counts + 1, body + 1, 16) || memcmp(table->symbols, body + 17, symbols)) {
            table->built = 0;
            memcpy(table->counts + 1, body + 1, 16);
            memcpy(table->symbols, body + 17, symbols);
            if (!build(table, (int)kind))
                return 0;
        }
        jpeg->huffman_defined[kind][number] = 1;
        body += 17 + symbols;
        size -= 17 + symbols;
    }
    return !size;
}

static int read_quantisation(Jpeg *jpeg, const uint8_t *body, size_t size) {
    while (size) {
        size_t wanted = body[0] >> 4 ? 129 : 65;
        if (body[0] >> 4 > 1 || (body[0] & 15) > 3 || size < wanted)
            return 0;
        jpeg->quantisation_defined[body[0] & 15] = 1;
        body += wanted;
        size -= wanted;
    }
    return 1;
}

static int read_frame(Jpeg *jpeg, const uint8_t *body, size_t size) {
    if (jpeg->components || size < 6 || body[0] != 8)
        return 0;
    unsigned components = body[5];
    jpeg->height = be16(body + 1), jpeg->width = be16(body + 3);
    if ((components != 1 && components != 3) || size != 6 + 3 * components || !jpeg->width || !jpeg->height || jpeg->width > 65500 || jpeg->height > 65500)
        return 0;
    for (unsigned n = 0; n < components; n++) {
        const uint8_t *given = body + 6 + 3 * n;
        Component found = {given[0], given[1] >> 4, given[1] & 15, given[2]};
        if (!found.horizontal || found.horizontal > 4 || !found.vertical || found.vertical > 4 || found.quantisation > 3)
            return 0;
        for (unsigned before = 0; before < n; before++)
            if (jpeg->component[before].id == found.id)
                return 0;
        jpeg->component[n] = found;
    }
    jpeg->components = components;
    return 1;
}

/* MCUs of the one scan that has all components; 0 where it is anything else. */
static uint32_t read_scan_header(Jpeg *jpeg, const Kept *kept, const uint8_t *body, size_t size) {
    unsigned across = 1, down = 1;
    if (!jpeg->components || size != 4 + 2 * (size_t)jpeg->components || body[0] != jpeg->components)
        return 0;
    if (body[size - 3] != 0 || body[size - 2] != 63 || body[size - 1] != 0)
        return 0;
    for (unsigned n = 0; n < jpeg->components && jpeg->components > 1; n++) {
        across = jpeg->component[n].horizontal > across ? jpeg->component[n].horizontal : across;
        down = jpeg->component[n].vertical > down ? jpeg->component[n].vertical : down;
    }
    for (unsigned n = 0; n < jpeg->components; n++) {
        const Component *component = &jpeg->component[n];
        const uint8_t *chosen = body + 1 + 2 * n;
        if (chosen[0] != component->id || chosen[1] >> 4 > 3 || (chosen[1] & 15) > 3 || !jpeg->quantisation_defined[component->quantisation])
            return 0;
        /* A component alone comes block by block, whatever its factors. */
        unsigned blocks = jpeg->components == 1 ? 1 : component->horizontal * component->vertical;
        if (!jpeg->huffman_defined[0][chosen[1] >> 4] || !jpeg->huffman_defined[1][chosen[1] & 15] || jpeg->blocks + blocks > MAX_MCU_BLOCKS)
            return 0;
        if (jpeg->components > 1 && (across % component->horizontal || down % component->vertical))
            return 0;
        for (; blocks; blocks--, jpeg->blocks++)
            jpeg->dc[jpeg->blocks] = &kept->tables[0][chosen[1] >> 4], jpeg->ac[jpeg->blocks] = &kept->tables[1][chosen[1] & 15];
    }
    uint32_t columns = (jpeg->width + 8 * across - 1) / (8 * across), rows = (jpeg->height + 8 * down - 1) / (8 * down);
    return (uint64_t)columns * rows * across * down < MAX_COMPONENT_BLOCKS ? columns * rows : 0;
}

/* What libjpeg warns of: a JFIF of another age, a colour transform that it does not know. */
static int odd_application_data(unsigned marker, const uint8_t *body, size_t size) {
    if (marker == 0xE0 && size >= 7 && !memcmp(body, "JFIF", 5))
        return body[5] != 1;
    return marker == 0xEE && size >= 12 && !memcmp(body, "Adobe", 5) && body[11] > 1;
}

static int read_segment(Jpeg *jpeg, Kept *kept, unsigned marker, const uint8_t *body, size_t size) {
    switch (marker) {
    case 0xC0: case 0xC1:
        return read_frame(jpeg, body, size);
    case 0xC4:
        return read_huffman_tables(jpeg, kept, body, size);
    case 0xDB:
        return read_quantisation(jpeg, body, size);
    case 0xDD:
        jpeg->restart_interval = size == 2 ? be16(body) : 0;
        return size == 2;
    default:
        return (marker >> 4 == 0xE || marker == 0xFE) && !odd_application_data(marker, body, size);
    }
}

static int check(Jpeg *jpeg, Kept *kept, const uint8_t *data, size_t size) {
    size_t at = 2;
    while (at + 4 <= size && data[at] == 0xFF) {
        unsigned marker = data[at + 1];
        size_t length = be16(data + at + 2);
        if (length < 2 || at + 2 + length > size)
            return 0;
        const uint8_t *body = data + at + 4;
        at += 2 + length;
        if (marker == 0xDA) {
            uint32_t mcus = read_scan_header(jpeg, kept, body, length - 2);
            return mcus && check_scan(jpeg, kept, data + at, size - at, mcus);
        }
        if (!read_segment(jpeg, kept, marker, body, length - 2))
            return 0;
    }
    return 0;
}

/* 1 where the `size` bytes at `data` are a baseline JPEG whose picture is whole; 0 where libjpeg has to tell. */
int pairmill_jpeg_is_sound(const uint8_t *data, size_t size) {
    if (size < 4 || size > MAX_BYTES || data[0] != 0xFF || data[1] != 0xD8)
        return 0;
    if (!kept_by_thread)
        kept_by_thread = calloc(1, sizeof *kept_by_thread);
    Jpeg jpeg;
    memset(&jpeg, 0, sizeof jpeg);
    return kept_by_thread && check(&jpeg, kept_by_thread, data, size);
}
