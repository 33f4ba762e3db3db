// SpMM24 as a TensorRT plugin (IPluginV3, TensorRT 10 and 11): y = cast((x @ W) * scale).
//
// Inputs as onnx24's pass spmm-plugin writes them: x [..., K]; values [N, K/2], of x's type; metadata
// int32 [N, ceil(K/32)]; scale float32 [N] or [1]. Attributes K, N, dtype, out.
#pragma once

#include <NvInfer.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "plan_cache.hpp"

namespace onnx24 {

// The library, its plans and what was searched offline: one for each device of a process, shared by
// all layers, so that layers of one shape share plans.
struct Session {
    explicit Session(std::unique_ptr<Library> library, Choices choices = {});
    std::unique_ptr<Library> const library;
    PlanCache cache;
};

// The session of the current device. The choices are read from the file that the environment variable
// ONNX24_SPMM24_CHOICES names; one that is refused is an error, not ignored. Raises: LibraryError,
// ChoicesError.
std::shared_ptr<Session> current_session();
// Who makes sessions from now on; tests put a fake here. Not thread-safe.
void set_session_source(std::function<std::shared_ptr<Session>()> source);

struct Attributes {
    int32_t k = 0;
    int32_t n = 0;
    int32_t dtype = 0;
    int32_t out = 0;
};

// Why these attributes describe no product of cuSPARSELt; "" where they do.
std::string problem_with(Attributes const& attributes);

// What the build reserved for the library: of each optimization profile, the bucket of its largest
// number of rows, and the bytes. TensorRT asks one clone of a plugin for its workspace and may
// serialize another, so all clones share this.
class Reservations {
public:
    void add(int64_t bucket, std::size_t bytes);
    // The least that any profile holds that has room for so many rows. Raises: std::runtime_error
    // where none has.
    std::size_t limit(int64_t rows) const;
    // bucket, bytes, bucket, bytes, …
    std::vector<int64_t> flat() const;

private:
    mutable std::mutex mutex_;
    std::map<int64_t, std::size_t> bytes_;
};

// A layer's weight as cuSPARSELt reads it, made when the layer first runs.
class Weight {
public:
    // Reads values, metadata and scale from the device, checks and compresses them; waits for the
    // stream. Raises: LibraryError, std::invalid_argument.
    void prepare(std::shared_ptr<Session> const& session, CompiledPlan const& plan,
                 void const* values, void const* metadata, void const* scale, void* stream);
    bool is_ready() const;
    void const* compressed() const { return compressed_.get(); }
    // On the host for one scale, on the device for one each output.
    float const* alpha() const;

private:
    mutable std::mutex mutex_;
    std::shared_ptr<Session> session_;  // before its memory, so that it goes last
    bool ready_ = false;
    bool per_channel_ = false;
    float scale_ = 1.0f;
    DeviceBuffer compressed_;
    DeviceBuffer scales_;
};

class Spmm24Plugin final : public nvinfer1::IPluginV3,
                           public nvinfer1::IPluginV3OneCore,
                           public nvinfer1::IPluginV3OneBuild,
                           public nvinfer1::IPluginV3OneRuntime {
public:
    Spmm24Plugin(Attributes const& attributes, std::shared_ptr<Reservations> reserved);

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // Core
    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

    // Build
    int32_t getNbOutputs() const noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t outputCount,
                               nvinfer1::DataType const* inputs,
                               int32_t inputCount) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t inputCount,
                            nvinfer1::DimsExprs const* shapeInputs, int32_t shapeInputCount,
                            nvinfer1::DimsExprs* outputs, int32_t outputCount,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                   int32_t inputCount, int32_t outputCount) noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t inputCount,
                            nvinfer1::DynamicPluginTensorDesc const* outputs,
                            int32_t outputCount) noexcept override;
    std::size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs,
                                 int32_t inputCount,
                                 nvinfer1::DynamicPluginTensorDesc const* outputs,
                                 int32_t outputCount) const noexcept override;

    // Runtime
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t inputCount,
                          nvinfer1::PluginTensorDesc const* outputs,
                          int32_t outputCount) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDescs,
                    nvinfer1::PluginTensorDesc const* outputDescs, void const* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(
        nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

    Attributes const& attributes() const { return attributes_; }

private:
    Problem problem(bool per_channel) const;

    Attributes attributes_;
    std::shared_ptr<Reservations> reserved_;
    std::shared_ptr<Session> session_;  // before what it made, so that it goes last
    std::shared_ptr<Weight> weight_;
    PlanCache::PlanPtr plan_;
    int64_t rows_ = 0;
    std::vector<int64_t> flat_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection serialized_{};
};

class Spmm24Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    Spmm24Creator();
    nvinfer1::IPluginV3* createPlugin(char const* name, nvinfer1::PluginFieldCollection const* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

private:
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection names_{};
};

}  // namespace onnx24
