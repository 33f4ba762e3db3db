// The algorithms that an offline search found, and the file that keeps them.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>

#include "library.hpp"

namespace onnx24 {

// A product up to its number of rows: y [M, N] = alpha · x [M, K] · W [K, N]. x and y are row-major,
// W is 2:4 along K. There is one layout so far: W as a row-major structured [N, K], x as a row-major
// [M, K] taken transposed, y as a column-major [N, M]. There is one epilogue: alpha, which is one
// number or (per_channel) one for each of the N outputs.
struct Problem {
    Type weight = Type::kFloat16;
    Type result = Type::kFloat16;
    int64_t n = 0;
    int64_t k = 0;
    bool per_channel = false;
};

// What an algorithm was searched for.
struct Tuned {
    int sm = 0;
    int library = 0;
    Problem problem;
    int64_t bucket = 0;

    auto tie() const {
        return std::make_tuple(sm, library, static_cast<int32_t>(problem.weight),
                               static_cast<int32_t>(problem.result), problem.n, problem.k,
                               problem.per_channel, bucket);
    }
    bool operator<(Tuned const& other) const { return tie() < other.tie(); }
};

// Why a file of choices is refused: what was expected, what was found, in which line.
class ChoicesError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// Not thread-safe by itself; PlanCache guards the one it has.
class Choices {
public:
    void set(Tuned const& key, Choice const& choice) { found_[key] = choice; }
    Choice const* find(Tuned const& key) const {
        auto it = found_.find(key);
        return it == found_.end() ? nullptr : &it->second;
    }
    std::size_t size() const { return found_.size(); }

    // Text: a heading with the format's version, one line a choice (sorted), a checksum. Choices of
    // other GPUs and library versions stay in it; they are not found, that is all.
    std::string text() const;
    // Raises: ChoicesError for anything that text() does not write.
    static Choices parse(std::string const& text);

    // Written beside and renamed, so that a reader sees the old file or the new one.
    // Raises: ChoicesError.
    void save(std::string const& path) const;
    static Choices load(std::string const& path);

private:
    std::map<Tuned, Choice> found_;
};

}  // namespace onnx24
