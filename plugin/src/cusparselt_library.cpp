#include "cusparselt_library.hpp"

#include <cuda_runtime_api.h>
#include <cusparseLt.h>

#include <stdexcept>
#include <string>

static_assert(CUSPARSELT_VERSION >= 801, "SpMM24 needs cuSPARSELt 0.8.1 or later");

namespace onnx24 {

struct Matrix { cusparseLtMatDescriptor_t value; };
struct Matmul { cusparseLtMatmulDescriptor_t value; };
struct Selection { cusparseLtMatmulAlgSelection_t value; };
struct Plan { cusparseLtMatmulPlan_t value; };

namespace {

constexpr uint32_t kAlignment = 16;
constexpr Status kCuda = 100000;  // CUDA's codes begin here, cuSPARSELt's are small

Status cuda(cudaError_t error) { return error == cudaSuccess ? 0 : kCuda + static_cast<int>(error); }

cudaDataType data_type(Type type) {
    switch (type) {
        case Type::kInt8: return CUDA_R_8I;
        case Type::kFloat16: return CUDA_R_16F;
        case Type::kBFloat16: return CUDA_R_16BF;
        case Type::kFloat: break;
    }
    return CUDA_R_32F;
}

cusparseOrder_t order_of(Order order) {
    return order == Order::kRow ? CUSPARSE_ORDER_ROW : CUSPARSE_ORDER_COL;
}

class CusparseLt final : public Library {
public:
    CusparseLt() {
        try {
            check(*this, "cudaGetDevice", cuda(cudaGetDevice(&device_)));
            int major = 0, minor = 0;
            check(*this, "cudaDeviceGetAttribute",
                  cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_)));
            check(*this, "cudaDeviceGetAttribute",
                  cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_)));
            sm_ = 10 * major + minor;
            check(*this, "cusparseLtInit", cusparseLtInit(&handle_));
            initialized_ = true;
            check(*this, "cusparseLtGetVersion", cusparseLtGetVersion(&handle_, &version_));
            if (version_ < 801)
                throw std::runtime_error("cuSPARSELt is version " + std::to_string(version_) +
                                         ", expected 801 (0.8.1) or later");
        } catch (...) {
            if (initialized_) cusparseLtDestroy(&handle_);
            throw;
        }
    }
    ~CusparseLt() override { cusparseLtDestroy(&handle_); }

    int device() const override { return device_; }
    int sm() const override { return sm_; }
    int version() const override { return version_; }
    std::string describe(Status status) const override {
        if (status >= kCuda) return cudaGetErrorString(static_cast<cudaError_t>(status - kCuda));
        return cusparseLtGetErrorString(static_cast<cusparseStatus_t>(status));
    }

    Status create_dense(Matrix** out, int64_t rows, int64_t columns, int64_t ld, Type type,
                        Order order) override {
        return make(out, [&](Matrix* m) {
            return cusparseLtDenseDescriptorInit(&handle_, &m->value, rows, columns, ld, kAlignment,
                                                 data_type(type), order_of(order));
        });
    }
    Status create_structured(Matrix** out, int64_t rows, int64_t columns, int64_t ld, Type type,
                             Order order) override {
        return make(out, [&](Matrix* m) {
            return cusparseLtStructuredDescriptorInit(&handle_, &m->value, rows, columns, ld,
                                                      kAlignment, data_type(type), order_of(order),
                                                      CUSPARSELT_SPARSITY_50_PERCENT);
        });
    }
    void destroy_matrix(Matrix* matrix) override {
        cusparseLtMatDescriptorDestroy(&matrix->value);
        delete matrix;
    }

    Status create_matmul(Matmul** out, Matrix* a, Matrix* b, bool transpose_b, Matrix* d,
                         Type type) override {
        auto const op_b =
            transpose_b ? CUSPARSE_OPERATION_TRANSPOSE : CUSPARSE_OPERATION_NON_TRANSPOSE;
        auto const compute = type == Type::kInt8 ? CUSPARSE_COMPUTE_32I : CUSPARSE_COMPUTE_32F;
        return make(out, [&](Matmul* m) {
            return cusparseLtMatmulDescriptorInit(&handle_, &m->value,
                                                  CUSPARSE_OPERATION_NON_TRANSPOSE, op_b, &a->value,
                                                  &b->value, &d->value, &d->value, compute);
        });
    }
    Status set_alpha_vector(Matmul* matmul) override {
        int const on = 1;
        return cusparseLtMatmulDescSetAttribute(
            &handle_, &matmul->value, CUSPARSELT_MATMUL_ALPHA_VECTOR_SCALING, &on, sizeof on);
    }
    void destroy_matmul(Matmul* matmul) override { delete matmul; }  // the C API has no destroy

    Status create_selection(Selection** out, Matmul* matmul) override {
        return make(out, [&](Selection* s) {
            return cusparseLtMatmulAlgSelectionInit(&handle_, &s->value, &matmul->value,
                                                    CUSPARSELT_MATMUL_ALG_DEFAULT);
        });
    }
    Status set_choice(Selection* selection, Choice const& choice) override {
        if (Status const status =
                set(selection, CUSPARSELT_MATMUL_ALG_CONFIG_ID, choice.algorithm))
            return status;
        if (choice.split_k >= 0)
            if (Status const status = set(selection, CUSPARSELT_MATMUL_SPLIT_K, choice.split_k))
                return status;
        if (choice.split_k_mode > 0) {
            auto const mode = static_cast<cusparseLtSplitKMode_t>(choice.split_k_mode);
            if (Status const status = cusparseLtMatmulAlgSetAttribute(
                    &handle_, &selection->value, CUSPARSELT_MATMUL_SPLIT_K_MODE, &mode, sizeof mode))
                return status;
        }
        if (choice.split_k_buffers >= 0)
            return set(selection, CUSPARSELT_MATMUL_SPLIT_K_BUFFERS, choice.split_k_buffers);
        return 0;
    }
    Status get_choice(Selection* selection, Choice* out) override {
        cusparseLtSplitKMode_t mode{};
        if (Status const status = get(selection, CUSPARSELT_MATMUL_ALG_CONFIG_ID, &out->algorithm))
            return status;
        if (Status const status = get(selection, CUSPARSELT_MATMUL_SPLIT_K, &out->split_k))
            return status;
        if (Status const status = cusparseLtMatmulAlgGetAttribute(
                &handle_, &selection->value, CUSPARSELT_MATMUL_SPLIT_K_MODE, &mode, sizeof mode))
            return status;
        out->split_k_mode = static_cast<int32_t>(mode);
        return get(selection, CUSPARSELT_MATMUL_SPLIT_K_BUFFERS, &out->split_k_buffers);
    }
    void destroy_selection(Selection* selection) override {
        cusparseLtMatmulAlgSelectionDestroy(&selection->value);
        delete selection;
    }

    Status create_plan(Plan** out, Matmul* matmul, Selection* selection) override {
        return make(out, [&](Plan* p) {
            return cusparseLtMatmulPlanInit(&handle_, &p->value, &matmul->value, &selection->value);
        });
    }
    Status workspace_bytes(Plan* plan, std::size_t* out) override {
        return cusparseLtMatmulGetWorkspace(&handle_, &plan->value, out);
    }
    void destroy_plan(Plan* plan) override {
        cusparseLtMatmulPlanDestroy(&plan->value);
        delete plan;
    }

    Status multiply(Plan* plan, float const* alpha, void const* a, void const* b, void* d,
                    void* workspace, void* stream) override {
        auto cuda_stream = static_cast<cudaStream_t>(stream);
        float const beta = 0.0f;
        return cusparseLtMatmul(&handle_, &plan->value, alpha, a, b, &beta, d, d, workspace,
                                &cuda_stream, 1);
    }
    Status search(Plan* plan, float const* alpha, void const* a, void const* b, void* d,
                  void* workspace, void* stream) override {
        auto cuda_stream = static_cast<cudaStream_t>(stream);
        float const beta = 0.0f;
        return cusparseLtMatmulSearch(&handle_, &plan->value, alpha, a, b, &beta, d, d, workspace,
                                      &cuda_stream, 1);
    }

    Status compressed_bytes(Matrix* m, std::size_t* out, std::size_t* buffer) override {
        return cusparseLtSpMMACompressedSize2(&handle_, &m->value, out, buffer);
    }
    Status compress(Matrix* m, void const* dense, void* out, void* buffer, void* stream) override {
        return cusparseLtSpMMACompress2(&handle_, &m->value, 1, CUSPARSE_OPERATION_NON_TRANSPOSE,
                                        dense, out, buffer, static_cast<cudaStream_t>(stream));
    }

    Status allocate(void** out, std::size_t bytes) override {
        return cuda(cudaMalloc(out, bytes > 0 ? bytes : 1));
    }
    void release(void* memory) override { cudaFree(memory); }
    Status to_host(void* out, void const* from, std::size_t bytes, void* stream) override {
        return move(out, from, bytes, cudaMemcpyDeviceToHost, stream);
    }
    Status to_device(void* out, void const* from, std::size_t bytes, void* stream) override {
        return move(out, from, bytes, cudaMemcpyHostToDevice, stream);
    }
    Status copy(void* out, void const* from, std::size_t bytes, void* stream) override {
        return move(out, from, bytes, cudaMemcpyDeviceToDevice, stream);
    }
    Status synchronize(void* stream) override {
        return cuda(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
    }
    bool is_capturing(void* stream) override {
        cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
        auto const error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
        return error != cudaSuccess || status != cudaStreamCaptureStatusNone;
    }

private:
    template <typename T, typename F>
    static Status make(T** out, F const& init) {
        auto made = std::make_unique<T>();
        Status const status = static_cast<Status>(init(made.get()));
        if (status == 0) *out = made.release();
        return status;
    }
    static Status move(void* out, void const* from, std::size_t bytes, cudaMemcpyKind kind,
                       void* stream) {
        return cuda(cudaMemcpyAsync(out, from, bytes, kind, static_cast<cudaStream_t>(stream)));
    }
    Status set(Selection* s, cusparseLtMatmulAlgAttribute_t attribute, int32_t value) {
        return cusparseLtMatmulAlgSetAttribute(&handle_, &s->value, attribute, &value, sizeof value);
    }
    Status get(Selection* s, cusparseLtMatmulAlgAttribute_t attribute, int32_t* value) {
        return cusparseLtMatmulAlgGetAttribute(&handle_, &s->value, attribute, value, sizeof *value);
    }

    cusparseLtHandle_t handle_{};
    bool initialized_ = false;
    int device_ = 0, sm_ = 0, version_ = 0;
};

}  // namespace

std::unique_ptr<Library> make_cusparselt() { return std::make_unique<CusparseLt>(); }

}  // namespace onnx24
