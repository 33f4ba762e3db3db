#include "choices.hpp"

#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <vector>

namespace onnx24 {

std::size_t size_of(Type type) {
    switch (type) {
        case Type::kFloat: return 4;
        case Type::kInt8: return 1;
        case Type::kFloat16:
        case Type::kBFloat16: return 2;
    }
    return 0;
}

char const* name_of(Type type) {
    switch (type) {
        case Type::kFloat: return "fp32";
        case Type::kInt8: return "int8";
        case Type::kFloat16: return "fp16";
        case Type::kBFloat16: return "bf16";
    }
    return "?";
}

bool is_product(Type weight, Type result) {
    bool const sixteen = result == Type::kFloat16 || result == Type::kBFloat16;
    return sixteen && (weight == result || weight == Type::kInt8);
}

namespace {

constexpr char kHeading[] = "onnx24-spmm24-choices 1";
constexpr std::size_t kMaxBytes = 16u << 20;
constexpr std::size_t kFields = 12;

// FNV-1a, 64 bits: against damage, not against intent.
uint64_t checksum(std::string const& text) {
    uint64_t hash = 14695981039346656037ull;
    for (unsigned char c : text) hash = (hash ^ c) * 1099511628211ull;
    return hash;
}

std::string line_of(Tuned const& key, Choice const& choice) {
    std::ostringstream out;
    out << key.sm << ' ' << key.library << ' ' << static_cast<int32_t>(key.problem.weight) << ' '
        << static_cast<int32_t>(key.problem.result) << ' ' << key.problem.n << ' ' << key.problem.k
        << ' ' << (key.problem.per_channel ? 1 : 0) << ' ' << key.bucket << ' ' << choice.algorithm
        << ' ' << choice.split_k << ' ' << choice.split_k_mode << ' ' << choice.split_k_buffers
        << '\n';
    return out.str();
}

[[noreturn]] void refuse(std::size_t line, std::string const& what) {
    throw ChoicesError("line " + std::to_string(line) + ": " + what);
}

int64_t number(std::string const& text, std::size_t line, int64_t low, int64_t high) {
    int64_t value = 0;
    auto const done = std::from_chars(text.data(), text.data() + text.size(), value);
    if (done.ec != std::errc() || done.ptr != text.data() + text.size())
        refuse(line, "expected a number, found '" + text + "'");
    if (value < low || value > high)
        refuse(line, text + " lies outside " + std::to_string(low) + ".." + std::to_string(high));
    return value;
}

Type type_of(int64_t value, std::size_t line) {
    auto const type = static_cast<Type>(value);
    if (size_of(type) == 0) refuse(line, std::to_string(value) + " is no type");
    return type;
}

std::vector<std::string> split(std::string const& line) {
    std::istringstream in(line);
    return {std::istream_iterator<std::string>(in), std::istream_iterator<std::string>()};
}

}  // namespace

std::string Choices::text() const {
    std::string body = std::string(kHeading) + '\n';
    for (auto const& [key, choice] : found_) body += line_of(key, choice);
    char end[32];
    std::snprintf(end, sizeof end, "end %016" PRIx64 "\n", checksum(body));
    return body + end;
}

Choices Choices::parse(std::string const& text) {
    if (text.size() > kMaxBytes) throw ChoicesError("more than 16 MiB: no file of choices");
    auto const first = text.substr(0, text.find('\n'));
    if (first != kHeading)
        refuse(1, "expected '" + std::string(kHeading) + "', found '" + first.substr(0, 40) + "'");
    auto const last = text.rfind("end ");
    if (last == std::string::npos || last == 0 || text[last - 1] != '\n')
        throw ChoicesError("no line 'end …': the file is cut off");
    char end[32];
    std::snprintf(end, sizeof end, "end %016" PRIx64 "\n", checksum(text.substr(0, last)));
    if (text.substr(last) != end) throw ChoicesError("the checksum is wrong: the file is damaged");

    Choices choices;
    std::istringstream in(text.substr(0, last));
    std::string line;
    std::getline(in, line);
    constexpr int64_t kMax = 2147483647;
    for (std::size_t at = 2; std::getline(in, line); ++at) {
        auto const words = split(line);
        if (words.size() != kFields)
            refuse(at, "expected 12 numbers, found " + std::to_string(words.size()));
        Tuned key;
        key.sm = static_cast<int>(number(words[0], at, 1, 100000));
        key.library = static_cast<int>(number(words[1], at, 1, kMax));
        key.problem.weight = type_of(number(words[2], at, 1, 100), at);
        key.problem.result = type_of(number(words[3], at, 1, 100), at);
        key.problem.n = number(words[4], at, 1, kMax);
        key.problem.k = number(words[5], at, 1, kMax);
        key.problem.per_channel = number(words[6], at, 0, 1) == 1;
        key.bucket = number(words[7], at, 1, kMax);
        Choice choice;
        choice.algorithm = static_cast<int32_t>(number(words[8], at, 0, 100000));
        choice.split_k = static_cast<int32_t>(number(words[9], at, -1, 100000));
        choice.split_k_mode = static_cast<int32_t>(number(words[10], at, -1, 100));
        choice.split_k_buffers = static_cast<int32_t>(number(words[11], at, -1, 100000));
        if (!choices.found_.emplace(key, choice).second) refuse(at, "a second choice for one key");
        if (line + '\n' != line_of(key, choice)) refuse(at, "numbers are not written plainly");
    }
    return choices;
}

void Choices::save(std::string const& path) const {
    std::string const beside = path + ".new";
    {
        std::ofstream out(beside, std::ios::binary | std::ios::trunc);
        out << text();
        out.flush();
        if (!out) {
            std::remove(beside.c_str());
            throw ChoicesError(beside + " cannot be written");
        }
    }
    if (std::rename(beside.c_str(), path.c_str()) != 0) {
        std::remove(beside.c_str());
        throw ChoicesError(path + " cannot be replaced");
    }
}

Choices Choices::load(std::string const& path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) throw ChoicesError(path + " cannot be read");
    std::string text(kMaxBytes + 1, '\0');
    in.read(&text[0], static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(in.gcount()));
    try {
        return parse(text);
    } catch (ChoicesError const& err) {
        throw ChoicesError(path + ", " + err.what());
    }
}

}  // namespace onnx24
