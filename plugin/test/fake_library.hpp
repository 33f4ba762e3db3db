// A library of the same contract that multiplies on the CPU. It counts calls, fails the call that a
// test names, and remembers what was destroyed twice, too early, or never.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "library.hpp"

namespace onnx24 {

inline float half_to_float(uint16_t h) {
    int const exponent = h >> 10 & 31, fraction = h & 1023;
    float value = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
                  : exponent == 31 ? (fraction ? NAN : INFINITY)
                                   : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    return h & 0x8000 ? -value : value;
}

inline uint16_t float_to_half(float value) {  // to nearest even; overflow to infinity
    uint16_t const sign = std::signbit(value) ? 0x8000 : 0;
    float const size = std::fabs(value);
    if (std::isnan(value)) return 0x7e00;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < std::ldexp(1.0f, -14))
        return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 24)));
    int exponent = 0;
    std::frexp(size, &exponent);  // size = f * 2^exponent, f in [0.5, 1)
    auto const fraction = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, 11 - exponent)));
    // A fraction of 2048 carries into the exponent by itself.
    return sign | static_cast<uint16_t>(((exponent + 14) << 10) + (fraction - 1024));
}

}  // namespace onnx24

namespace onnx24 {

struct Matrix { int64_t rows, columns, ld; Type type; bool structured; Order order; int used = 0; };
struct Matmul { Matrix *a, *b, *d; bool transpose_b, vector = false; int used = 0; };
struct Selection { Matmul* matmul; Choice choice; int used = 0; };
struct Plan { Matmul* matmul; Selection* selection; };

class FakeLibrary : public Library {
public:
    explicit FakeLibrary(int sm = 90, int version = 1000, int device = 0)
        : sm_(sm), version_(version), device_(device) {}

    // --- what tests set and ask -----------------------------------------------------------
    std::atomic<bool> no_creation{false};  // creating anything is an error from now on
    std::atomic<bool> capturing{false};
    std::size_t workspace = 1000;
    Choice fastest{7, 2, 1, 3};
    int refused_algorithm = -2;  // set_choice of that one fails

    void fail(std::string const& call, int nth = 1) {
        std::lock_guard<std::mutex> lock(mutex_);
        failing_ = call;
        countdown_ = nth;
    }
    int calls(std::string const& call) const {
        std::lock_guard<std::mutex> lock(mutex_);
        auto const it = calls_.find(call);
        return it == calls_.end() ? 0 : it->second;
    }
    std::size_t live() const {
        std::lock_guard<std::mutex> lock(mutex_);
        return objects_.size() + memory_.size();
    }
    std::vector<std::string> errors() const {
        std::lock_guard<std::mutex> lock(mutex_);
        return errors_;
    }

    // --- the contract ---------------------------------------------------------------------
    int device() const override { return device_; }
    int sm() const override { return sm_; }
    int version() const override { return version_; }
    std::string describe(Status) const override { return "a fault for the test"; }

    Status create_dense(Matrix** out, int64_t rows, int64_t columns, int64_t ld, Type type,
                        Order order) override {
        return make("create_dense", out, Matrix{rows, columns, ld, type, false, order});
    }
    Status create_structured(Matrix** out, int64_t rows, int64_t columns, int64_t ld, Type type,
                             Order order) override {
        return make("create_structured", out, Matrix{rows, columns, ld, type, true, order});
    }
    void destroy_matrix(Matrix* matrix) override {
        if (forget(matrix, "matrix")) {
            expect(matrix->used == 0, "a matrix goes while a matmul uses it");
            delete matrix;
        }
    }
    Status create_matmul(Matmul** out, Matrix* a, Matrix* b, bool transpose_b, Matrix* d,
                         Type) override {
        Status const status = make("create_matmul", out, Matmul{a, b, d, transpose_b});
        if (status == 0)
            for (Matrix* each : {a, b, d}) locked([&] { ++each->used; });
        return status;
    }
    Status set_alpha_vector(Matmul* matmul) override {
        Status const status = enter("set_alpha_vector");
        if (status == 0) matmul->vector = true;
        return status;
    }
    void destroy_matmul(Matmul* matmul) override {
        if (forget(matmul, "matmul")) {
            expect(matmul->used == 0, "a matmul goes while a selection or plan uses it");
            for (Matrix* each : {matmul->a, matmul->b, matmul->d}) locked([&] { --each->used; });
            delete matmul;
        }
    }
    Status create_selection(Selection** out, Matmul* matmul) override {
        Status const status = make("create_selection", out, Selection{matmul, {}});
        if (status == 0) locked([&] { ++matmul->used; });
        return status;
    }
    Status set_choice(Selection* selection, Choice const& choice) override {
        Status const status = enter("set_choice");
        if (status != 0) return status;
        if (choice.algorithm == refused_algorithm) return 3;
        selection->choice = choice;
        return 0;
    }
    Status get_choice(Selection* selection, Choice* out) override {
        *out = selection->choice;
        return enter("get_choice");
    }
    void destroy_selection(Selection* selection) override {
        if (forget(selection, "selection")) {
            expect(selection->used == 0, "a selection goes while a plan uses it");
            locked([&] { --selection->matmul->used; });
            delete selection;
        }
    }
    Status create_plan(Plan** out, Matmul* matmul, Selection* selection) override {
        Status const status = make("create_plan", out, Plan{matmul, selection});
        if (status == 0) locked([&] { ++matmul->used, ++selection->used; });
        return status;
    }
    Status workspace_bytes(Plan* plan, std::size_t* out) override {
        Status const status = enter("workspace_bytes");
        bool const searched = !plan->selection->choice.is_default();
        *out = workspace + static_cast<std::size_t>(plan->matmul->d->columns) + (searched ? 5000 : 0);
        return status;
    }
    void destroy_plan(Plan* plan) override {
        if (forget(plan, "plan")) {
            locked([&] { --plan->matmul->used, --plan->selection->used; });
            delete plan;
        }
    }

    Status multiply(Plan* plan, float const* alpha, void const* a, void const* b, void* d, void*,
                    void*) override {
        Status const status = enter("multiply");
        if (status != 0) return status;
        Matmul const& op = *plan->matmul;
        int64_t const n = op.a->rows, k = op.a->columns, m = op.b->rows;
        for (int64_t i = 0; i < m; ++i)
            for (int64_t j = 0; j < n; ++j) {
                double sum = 0;
                for (int64_t l = 0; l < k; ++l)
                    sum += static_cast<double>(read(a, j * k + l, op.a->type)) *
                           static_cast<double>(read(b, i * k + l, op.b->type));
                write(d, i * n + j, op.d->type,
                      static_cast<float>(sum) * (op.vector ? alpha[j] : *alpha));
            }
        return 0;
    }
    Status search(Plan* plan, float const*, void const*, void const*, void*, void*, void*) override {
        Status const status = enter("search");
        if (status == 0) plan->selection->choice = fastest;
        return status;
    }

    // Compressed is a copy here, behind eight bytes that say so.
    Status compressed_bytes(Matrix* m, std::size_t* out, std::size_t* buffer) override {
        *out = static_cast<std::size_t>(m->rows * m->columns) * size_of(m->type);
        *buffer = 64;
        return enter("compressed_bytes");
    }
    Status compress(Matrix* m, void const* dense, void* out, void*, void*) override {
        Status const status = enter("compress");
        if (status == 0)
            std::memcpy(out, dense, static_cast<std::size_t>(m->rows * m->columns) * size_of(m->type));
        return status;
    }

    Status allocate(void** out, std::size_t bytes) override {
        Status const status = enter("allocate");
        if (status != 0) return status;
        *out = std::malloc(bytes ? bytes : 1);
        locked([&] { memory_.insert(*out); });
        return 0;
    }
    void release(void* memory) override {
        bool known = false;
        locked([&] { known = memory_.erase(memory) == 1; });
        expect(known, "memory is released that is not held");
        if (known) std::free(memory);
    }
    Status to_host(void* out, void const* from, std::size_t bytes, void*) override {
        return moved("to_host", out, from, bytes);
    }
    Status to_device(void* out, void const* from, std::size_t bytes, void*) override {
        return moved("to_device", out, from, bytes);
    }
    Status copy(void* out, void const* from, std::size_t bytes, void*) override {
        return moved("copy", out, from, bytes);
    }
    Status synchronize(void*) override { return enter("synchronize"); }
    bool is_capturing(void*) override { return capturing; }

private:
    template <typename F>
    void locked(F const& work) {
        std::lock_guard<std::mutex> lock(mutex_);
        work();
    }
    void expect(bool holds, char const* complaint) {
        if (!holds) locked([&] { errors_.push_back(complaint); });
    }
    Status enter(std::string const& call) {
        std::lock_guard<std::mutex> lock(mutex_);
        ++calls_[call];
        if (call == failing_ && --countdown_ == 0) return 6;
        return 0;
    }
    template <typename T>
    Status make(std::string const& call, T** out, T value) {
        expect(!no_creation, "a descriptor or plan is made where none may be");
        Status const status = enter(call);
        if (status != 0) return status;
        *out = new T(value);
        locked([&] { objects_.insert(*out); });
        return 0;
    }
    bool forget(void* object, char const* kind) {
        bool known = false;
        locked([&] { known = objects_.erase(object) == 1; });
        expect(known, kind);
        return known;
    }
    Status moved(char const* call, void* out, void const* from, std::size_t bytes) {
        Status const status = enter(call);
        if (status == 0) std::memcpy(out, from, bytes);
        return status;
    }
    static float read(void const* data, int64_t at, Type type) {
        if (type == Type::kInt8) return static_cast<int8_t const*>(data)[at];
        if (type == Type::kFloat) return static_cast<float const*>(data)[at];
        uint16_t const bits = static_cast<uint16_t const*>(data)[at];
        if (type == Type::kFloat16) return half_to_float(bits);
        uint32_t const wide = static_cast<uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
    static void write(void* data, int64_t at, Type type, float value) {
        if (type == Type::kFloat) {
            static_cast<float*>(data)[at] = value;
        } else if (type == Type::kFloat16) {
            static_cast<uint16_t*>(data)[at] = float_to_half(value);
        } else {  // bfloat16, to nearest even
            uint32_t bits;
            std::memcpy(&bits, &value, 4);
            static_cast<uint16_t*>(data)[at] =
                static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        }
    }

    int const sm_, version_, device_;
    mutable std::mutex mutex_;
    std::map<std::string, int> calls_;
    std::set<void*> objects_, memory_;
    std::vector<std::string> errors_;
    std::string failing_;
    int countdown_ = 0;
};

}  // namespace onnx24
