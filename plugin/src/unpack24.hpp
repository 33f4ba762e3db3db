// The packed form of onnx24/sparsity/pack.py, taken apart on the host. What cuSPARSELt's Compress
// writes is another, opaque form; it starts from the dense array.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace onnx24 {

// values: [n, k/2], of `itemsize` bytes (1, 2 or 4). words: int32 [n, ceil(k/32)], the places of the
// values, two bits each, the first in the lowest bits. Returns: [n, k], row-major.
// Raises: std::invalid_argument for metadata that no 2:4 array has.
std::vector<uint8_t> unpack24(void const* values, int32_t const* words, int64_t n, int64_t k,
                              std::size_t itemsize);

inline int64_t words_of_row(int64_t k) { return (k + 31) / 32; }

}  // namespace onnx24
