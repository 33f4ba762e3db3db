// What SpMM24 asks of cuSPARSELt and of the CUDA runtime, one function a call of theirs, so that
// everything above it runs in tests without a GPU.
//
// Source: cuSPARSELt's C API (cusparseLt.h, 0.8.1 to 0.10).
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace onnx24 {

// The numbers are ONNX's (TensorProto.DataType).
enum class Type : int32_t { kFloat = 1, kInt8 = 3, kFloat16 = 10, kBFloat16 = 16 };

std::size_t size_of(Type type);         // [bytes]; 0 for a number that is no Type
char const* name_of(Type type);         // "fp16", "bf16", "int8", "fp32", or "?"
bool is_product(Type weight, Type result);  // whether cuSPARSELt has a 2:4 product of these

enum class Order : int32_t { kRow, kColumn };

// How an algorithm is run; -1: as the library decides.
struct Choice {
    int32_t algorithm = -1;
    int32_t split_k = -1;
    int32_t split_k_mode = -1;
    int32_t split_k_buffers = -1;

    bool is_default() const { return algorithm < 0; }
    bool operator==(Choice const& o) const {
        return algorithm == o.algorithm && split_k == o.split_k && split_k_mode == o.split_k_mode &&
               split_k_buffers == o.split_k_buffers;
    }
};

using Status = int;  // 0: success

// Objects of the library. Each that a create_* returned is given back to its destroy_* once.
struct Matrix;
struct Matmul;
struct Selection;
struct Plan;

class Library {
public:
    virtual ~Library() = default;

    virtual int device() const = 0;
    virtual int sm() const = 0;       // 80, 89, 90, …
    virtual int version() const = 0;  // as cusparseLtGetVersion says
    virtual std::string describe(Status status) const = 0;

    virtual Status create_dense(Matrix** out, int64_t rows, int64_t columns, int64_t ld, Type type,
                                Order order) = 0;
    virtual Status create_structured(Matrix** out, int64_t rows, int64_t columns, int64_t ld,
                                     Type type, Order order) = 0;
    virtual void destroy_matrix(Matrix* matrix) = 0;

    // d = alpha · a · op(b); transpose_b: op is the transposition. d is also c, with beta = 0.
    virtual Status create_matmul(Matmul** out, Matrix* a, Matrix* b, bool transpose_b, Matrix* d,
                                 Type type) = 0;
    virtual Status set_alpha_vector(Matmul* matmul) = 0;
    virtual void destroy_matmul(Matmul* matmul) = 0;

    virtual Status create_selection(Selection** out, Matmul* matmul) = 0;
    virtual Status set_choice(Selection* selection, Choice const& choice) = 0;
    virtual Status get_choice(Selection* selection, Choice* out) = 0;
    virtual void destroy_selection(Selection* selection) = 0;

    virtual Status create_plan(Plan** out, Matmul* matmul, Selection* selection) = 0;
    virtual Status workspace_bytes(Plan* plan, std::size_t* out) = 0;
    virtual void destroy_plan(Plan* plan) = 0;

    // alpha: one float on the host, or with set_alpha_vector one a row of d on the device.
    virtual Status multiply(Plan* plan, float const* alpha, void const* a, void const* b, void* d,
                            void* workspace, void* stream) = 0;
    // Times the algorithms and leaves the fastest in the plan's selection.
    virtual Status search(Plan* plan, float const* alpha, void const* a, void const* b, void* d,
                          void* workspace, void* stream) = 0;

    virtual Status compressed_bytes(Matrix* structured, std::size_t* out, std::size_t* buffer) = 0;
    virtual Status compress(Matrix* structured, void const* dense, void* out, void* buffer,
                            void* stream) = 0;

    // Device memory.
    virtual Status allocate(void** out, std::size_t bytes) = 0;
    virtual void release(void* memory) = 0;
    virtual Status to_host(void* out, void const* device, std::size_t bytes, void* stream) = 0;
    virtual Status to_device(void* out, void const* host, std::size_t bytes, void* stream) = 0;
    virtual Status copy(void* out, void const* device, std::size_t bytes, void* stream) = 0;
    virtual Status synchronize(void* stream) = 0;
    virtual bool is_capturing(void* stream) = 0;
};

class LibraryError : public std::runtime_error {
public:
    LibraryError(std::string const& call, Status status, std::string const& text)
        : std::runtime_error(call + ": " + text + " (" + std::to_string(status) + ")"),
          code(status) {}
    Status const code;
};

inline void check(Library const& library, char const* call, Status status) {
    if (status != 0) throw LibraryError(call, status, library.describe(status));
}

// Device memory that is given back when it goes out of scope.
class DeviceBuffer {
public:
    DeviceBuffer() = default;
    DeviceBuffer(Library& library, std::size_t bytes) : library_(&library) {
        check(library, "allocate", library.allocate(&memory_, bytes));
    }
    DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
    DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
        swap(other);
        return *this;
    }
    ~DeviceBuffer() {
        if (memory_ != nullptr) library_->release(memory_);
    }
    void* get() const { return memory_; }

private:
    void swap(DeviceBuffer& other) noexcept {
        std::swap(library_, other.library_);
        std::swap(memory_, other.memory_);
    }
    Library* library_ = nullptr;
    void* memory_ = nullptr;
};

}  // namespace onnx24
