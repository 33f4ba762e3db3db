// unpack_tool N K ITEMSIZE: packed values and metadata words on stdin, the dense array on stdout, so
// that the reader here can be compared with the writer in onnx24/sparsity/pack.py.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

#include "unpack24.hpp"

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    auto const n = std::atoll(argv[1]), k = std::atoll(argv[2]);
    auto const itemsize = static_cast<std::size_t>(std::atoll(argv[3]));
    if (n < 1 || k < 4 || n > 65536 || k > 65536 || itemsize > 4) return 2;
    std::vector<unsigned char> values(static_cast<std::size_t>(n * k / 2) * itemsize);
    std::vector<int32_t> words(static_cast<std::size_t>(n * onnx24::words_of_row(k)));
    if (std::fread(values.data(), 1, values.size(), stdin) != values.size()) return 2;
    if (std::fread(words.data(), 4, words.size(), stdin) != words.size()) return 2;
    try {
        auto const dense = onnx24::unpack24(values.data(), words.data(), n, k, itemsize);
        return std::fwrite(dense.data(), 1, dense.size(), stdout) == dense.size() ? 0 : 1;
    } catch (std::exception const& err) {
        std::fprintf(stderr, "%s\n", err.what());
        return 1;
    }
}
