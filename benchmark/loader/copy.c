/* The copies that memory allows: the limits that the loader's benchmark compares with. */
#include <immintrin.h>
#include <stddef.h>
#include <string.h>

/* Past the caches; addresses and size are multiples of 64. */
__attribute__((target("avx"))) void copy_non_temporal(char *to, const char *from, size_t bytes) {
    for (size_t place = 0; place < bytes; place += 64) {
        __m256i first = _mm256_load_si256((const __m256i *)(from + place));
        __m256i second = _mm256_load_si256((const __m256i *)(from + place + 32));
        _mm256_stream_si256((__m256i *)(to + place), first);
        _mm256_stream_si256((__m256i *)(to + place + 32), second);
    }
    _mm_sfence();
}

void copy_plain(char *to, const char *from, size_t bytes) { memcpy(to, from, bytes); }
