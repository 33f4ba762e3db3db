#include "unpack24.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

namespace onnx24 {

std::vector<uint8_t> unpack24(void const* values, int32_t const* words, int64_t n, int64_t k,
                              std::size_t itemsize) {
    if (n < 1 || k < 4 || k % 4 != 0 || (itemsize != 1 && itemsize != 2 && itemsize != 4))
        throw std::invalid_argument("no packed array: N = " + std::to_string(n) +
                                    ", K = " + std::to_string(k));
    auto const size = static_cast<int64_t>(itemsize);
    std::vector<uint8_t> out(static_cast<std::size_t>(n * k * size), 0);
    auto const* source = static_cast<uint8_t const*>(values);
    int64_t const row_words = words_of_row(k);
    for (int64_t row = 0; row < n; ++row) {
        for (int64_t group = 0; group < row_words * 8; ++group) {
            auto const word = static_cast<uint32_t>(words[row * row_words + group / 8]);
            uint32_t const nibble = word >> (4 * (group % 8)) & 15u;
            if (group >= k / 4) {
                if (nibble != 0) throw std::invalid_argument("metadata: unused bits are set");
                continue;
            }
            uint32_t const first = nibble & 3u, second = nibble >> 2;
            if (first >= second)
                throw std::invalid_argument("metadata: places " + std::to_string(first) + ", " +
                                            std::to_string(second) + " are not ascending");
            auto* const target = &out[static_cast<std::size_t>((row * k + 4 * group) * size)];
            auto const* const pair = source + (row * (k / 2) + 2 * group) * size;
            std::memcpy(target + first * itemsize, pair, itemsize);
            std::memcpy(target + second * itemsize, pair + itemsize, itemsize);
        }
    }
    return out;
}

}  // namespace onnx24
