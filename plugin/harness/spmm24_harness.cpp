// Multiplies with real cuSPARSELt, by the plugin's own plan cache, and compares with float32 on the
// CPU. For machines that have a GPU; TensorRT is not needed.
//
//   spmm24_harness [--type fp16|bf16|int8] [--n N] [--k K] [--m M,M,…] [--search] [--choices FILE]
//                  [--runs R] [--seed S]
//
// One line a row count: bucket, algorithm, workspace, median time, TFLOP/s as if dense, largest
// error in units of the result's spacing. Exit code 1 where an error is above the bound.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cusparselt_library.hpp"
#include "plan_cache.hpp"

using namespace onnx24;

namespace {

struct Options {
    Type type = Type::kFloat16;
    int64_t n = 768, k = 768;
    std::vector<int64_t> rows{1, 8, 16, 100, 128, 512, 1000, 4096, 8192};
    bool search = false;
    std::string choices;
    int runs = 50;
    unsigned seed = 1;
};

[[noreturn]] void usage(std::string const& what) {
    std::fprintf(stderr, "spmm24_harness: %s; the head of the source lists the options\n",
                 what.c_str());
    std::exit(2);
}

int64_t positive(std::string const& text) {
    char* end = nullptr;
    long long const value = std::strtoll(text.c_str(), &end, 10);
    if (end == text.c_str() || *end != '\0' || value < 1 || value > (1 << 24))
        usage("'" + text + "' is no count");
    return value;
}

Options parse(int argc, char** argv) {
    Options o;
    for (int i = 1; i < argc; ++i) {
        std::string const name = argv[i];
        if (name == "--search") {
            o.search = true;
            continue;
        }
        if (i + 1 == argc) usage(name + " is unknown, or lacks its value");
        std::string const value = argv[++i];
        if (name == "--type") {
            if (value == "fp16") o.type = Type::kFloat16;
            else if (value == "bf16") o.type = Type::kBFloat16;
            else if (value == "int8") o.type = Type::kInt8;
            else usage(value + " is no type");
        } else if (name == "--n") o.n = positive(value);
        else if (name == "--k") o.k = positive(value);
        else if (name == "--runs") o.runs = static_cast<int>(positive(value));
        else if (name == "--seed") o.seed = static_cast<unsigned>(positive(value));
        else if (name == "--choices") o.choices = value;
        else if (name == "--m") {
            o.rows.clear();
            for (std::size_t at = 0; at <= value.size();) {
                std::size_t const comma = std::min(value.find(',', at), value.size());
                o.rows.push_back(positive(value.substr(at, comma - at)));
                at = comma + 1;
            }
        } else usage(name + " is unknown");
    }
    return o;
}

// --- numbers ----------------------------------------------------------------------------------
// A float of `digits` significant bits nearest to value; exponents stay far from the limits here.
float rounded(float value, int digits) {
    if (value == 0.0f) return 0.0f;
    int exponent = 0;
    float const fraction = std::frexp(value, &exponent);
    return std::ldexp(std::nearbyint(std::ldexp(fraction, digits)), exponent - digits);
}

int digits_of(Type type) { return type == Type::kBFloat16 ? 8 : 11; }

void put(std::vector<unsigned char>& out, std::size_t at, Type type, float value) {
    if (type == Type::kInt8) {
        out[at] = static_cast<unsigned char>(static_cast<int8_t>(value));
        return;
    }
    uint16_t bits = 0;
    if (type == Type::kBFloat16) {
        uint32_t wide;
        std::memcpy(&wide, &value, 4);
        bits = static_cast<uint16_t>(wide >> 16);  // exact: the value was rounded to 8 digits
    } else if (value != 0.0f) {
        int exponent = 0;
        float const fraction = std::frexp(std::fabs(value), &exponent);
        auto const scaled = static_cast<uint32_t>(std::ldexp(fraction, 11));
        bits = static_cast<uint16_t>((value < 0 ? 0x8000u : 0u) +
                                     (static_cast<uint32_t>(exponent + 14) << 10) + scaled - 1024u);
    }
    std::memcpy(&out[2 * at], &bits, 2);
}

float get(std::vector<unsigned char> const& in, std::size_t at, Type type) {
    uint16_t bits;
    std::memcpy(&bits, &in[2 * at], 2);
    if (type == Type::kBFloat16) {
        uint32_t const wide = static_cast<uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
    int const exponent = bits >> 10 & 31, fraction = bits & 1023;
    float const size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                       : exponent == 31
                           ? INFINITY
                           : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    return bits & 0x8000 ? -size : size;
}

float draw(std::mt19937& random, Type type) {
    if (type == Type::kInt8)
        return static_cast<float>(std::uniform_int_distribution<int>(-127, 127)(random));
    float const value = std::uniform_real_distribution<float>(0.25f, 1.0f)(random);
    return rounded(random() & 1u ? value : -value, digits_of(type));
}

void cuda(cudaError_t error, char const* call) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(error));
}

// Median of so many runs [ms].
template <typename F>
double median_ms(int runs, F const& work) {
    cudaEvent_t start, stop;
    cuda(cudaEventCreate(&start), "cudaEventCreate");
    cuda(cudaEventCreate(&stop), "cudaEventCreate");
    for (int i = 0; i < 5; ++i) work();
    std::vector<float> times(static_cast<std::size_t>(runs));
    for (float& time : times) {
        cuda(cudaEventRecord(start, nullptr), "cudaEventRecord");
        work();
        cuda(cudaEventRecord(stop, nullptr), "cudaEventRecord");
        cuda(cudaEventSynchronize(stop), "cudaEventSynchronize");
        cuda(cudaEventElapsedTime(&time, start, stop), "cudaEventElapsedTime");
    }
    cudaEventDestroy(start);
    cudaEventDestroy(stop);
    std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
    return static_cast<double>(times[static_cast<std::size_t>(runs / 2)]);
}

// --- one run ----------------------------------------------------------------------------------
int run(Options const& o) {
    auto const library = make_cusparselt();
    Library& lib = *library;
    Type const result = o.type == Type::kInt8 ? Type::kFloat16 : o.type;
    Problem const problem{o.type, result, o.n, o.k, o.type == Type::kInt8};
    Choices choices;
    if (!o.choices.empty() && !o.search) choices = Choices::load(o.choices);
    PlanCache cache(lib, choices);

    auto const n = static_cast<std::size_t>(o.n), k = static_cast<std::size_t>(o.k);
    std::mt19937 random(o.seed);
    std::vector<float> w(n * k, 0.0f);
    std::vector<unsigned char> w_bytes(n * k * size_of(o.type), 0);
    for (std::size_t group = 0; group < n * k / 4; ++group) {
        std::size_t const first = random() % 4, second = (first + 1 + random() % 3) % 4;
        for (std::size_t place : {first, second}) {
            w[4 * group + place] = draw(random, o.type);
            put(w_bytes, 4 * group + place, o.type, w[4 * group + place]);
        }
    }
    std::vector<float> alpha(problem.per_channel ? n : 1, 1.0f);
    for (std::size_t i = 0; problem.per_channel && i < n; ++i)
        alpha[i] = 1e-4f * static_cast<float>(1 + i % 7);

    auto const most = static_cast<std::size_t>(
        bucket_of(*std::max_element(o.rows.begin(), o.rows.end())));
    DeviceBuffer const x(lib, most * k * size_of(o.type)), y(lib, most * n * 2);
    DeviceBuffer const dense(lib, w_bytes.size()), scales(lib, alpha.size() * 4);
    std::vector<float> x_values(most * k);
    std::vector<unsigned char> x_bytes(most * k * size_of(o.type));
    for (std::size_t i = 0; i < x_values.size(); ++i) {
        x_values[i] = draw(random, o.type);
        put(x_bytes, i, o.type, x_values[i]);
    }
    check(lib, "to_device", lib.to_device(x.get(), x_bytes.data(), x_bytes.size(), nullptr));
    check(lib, "to_device", lib.to_device(dense.get(), w_bytes.data(), w_bytes.size(), nullptr));
    check(lib, "to_device", lib.to_device(scales.get(), alpha.data(), alpha.size() * 4, nullptr));

    auto const first = cache.at(problem, o.rows.front());
    std::size_t bytes = 0, buffer_bytes = 0;
    check(lib, "compressed_bytes", lib.compressed_bytes(first->structured(), &bytes, &buffer_bytes));
    DeviceBuffer const compressed(lib, bytes), buffer(lib, buffer_bytes);
    check(lib, "compress", lib.compress(first->structured(), dense.get(), compressed.get(),
                                        buffer.get(), nullptr));
    check(lib, "synchronize", lib.synchronize(nullptr));
    std::printf("device %d, sm_%d, cuSPARSELt %d, %s, N %zu, K %zu, compressed %zu of %zu bytes\n",
                lib.device(), lib.sm(), lib.version(), name_of(o.type), n, k, bytes, w_bytes.size());
    float const* const factor =
        problem.per_channel ? static_cast<float const*>(scales.get()) : alpha.data();

    bool good = true;
    for (int64_t rows : o.rows) {
        std::size_t space = cache.at(problem, rows)->workspace_bytes();
        if (o.search) {
            // A search may try what needs more than the library's own choice.
            DeviceBuffer const room(lib, std::max<std::size_t>(space, 256u << 20));
            cache.search(problem, rows, factor, compressed.get(), x.get(), y.get(), room.get(),
                         nullptr);
        }
        auto const plan = cache.at(problem, rows);
        DeviceBuffer const workspace(lib, plan->workspace_bytes());
        auto const multiply = [&] {
            plan->multiply(factor, compressed.get(), x.get(), y.get(), workspace.get(), nullptr);
        };
        double const ms = median_ms(o.runs, multiply);
        std::vector<unsigned char> y_bytes(static_cast<std::size_t>(plan->bucket()) * n * 2);
        check(lib, "to_host", lib.to_host(y_bytes.data(), y.get(), y_bytes.size(), nullptr));
        check(lib, "synchronize", lib.synchronize(nullptr));

        double worst = 0;  // in units of the result's spacing, plus what float32 sums lose
        for (int sample = 0; sample < 4096; ++sample) {
            std::size_t const i = random() % static_cast<std::size_t>(rows), j = random() % n;
            double sum = 0, size = 0;
            for (std::size_t l = 0; l < k; ++l) {
                double const product =
                    static_cast<double>(x_values[i * k + l]) * static_cast<double>(w[j * k + l]);
                sum += product;
                size += std::fabs(product);
            }
            double const scale = static_cast<double>(alpha[problem.per_channel ? j : 0]);
            double const spacing =
                std::ldexp(std::max(std::fabs(sum * scale), 6.2e-5), 1 - digits_of(result)) +
                size * scale * 1.2e-7 * 8;
            double const off =
                std::fabs(static_cast<double>(get(y_bytes, i * n + j, result)) - sum * scale);
            worst = std::max(worst, std::isfinite(off) ? off / spacing : INFINITY);
        }
        good = good && worst <= 1.0;
        std::printf("M %6lld  bucket %6lld  algorithm %3d  workspace %9zu  %9.4f ms  %8.2f TFLOP/s  "
                    "error %.3f%s\n",
                    static_cast<long long>(rows), static_cast<long long>(plan->bucket()),
                    plan->key().choice.algorithm, plan->workspace_bytes(), ms,
                    2e-9 * static_cast<double>(rows) * static_cast<double>(n) *
                        static_cast<double>(k) / ms,
                    worst, worst <= 1.0 ? "" : "  TOO LARGE");
    }
    if (o.search && !o.choices.empty()) {
        cache.choices().save(o.choices);
        std::printf("%zu choices saved to %s\n", cache.choices().size(), o.choices.c_str());
    }
    return good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    Options const options = parse(argc, argv);
    try {
        return run(options);
    } catch (std::exception const& err) {
        std::fprintf(stderr, "spmm24_harness: %s\n", err.what());
        return 3;
    }
}
