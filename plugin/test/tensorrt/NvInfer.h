// NOT TensorRT's header. The declarations that the plugin uses, written by hand from the documented
// API of TensorRT 10, so that its logic compiles and runs in tests where TensorRT cannot be had.
// Layouts and virtual tables are not TensorRT's: nothing built with this can be loaded by it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

typedef struct CUstream_st* cudaStream_t;

namespace nvinfer1 {

enum class DataType : int32_t { kFLOAT, kHALF, kINT8, kINT32, kBOOL, kUINT8, kFP8, kBF16, kINT64 };
enum class TensorFormat : int32_t { kLINEAR, kCHW2, kHWC8 };
enum class TensorRTPhase : int32_t { kBUILD, kRUNTIME };
enum class PluginCapabilityType : int32_t { kCORE, kBUILD, kRUNTIME };
enum class PluginFieldType : int32_t {
    kFLOAT16, kFLOAT32, kFLOAT64, kINT8, kINT16, kINT32, kCHAR, kDIMS, kUNKNOWN, kBF16, kINT64
};

struct Dims {
    static constexpr int32_t MAX_DIMS = 8;
    int32_t nbDims;
    int64_t d[MAX_DIMS];
};
struct PluginTensorDesc {
    Dims dims;
    DataType type;
    TensorFormat format;
    float scale;
};
struct DynamicPluginTensorDesc {
    PluginTensorDesc desc;
    Dims min, max, opt;
};
struct PluginField {
    char const* name;
    void const* data;
    PluginFieldType type;
    int32_t length;
    PluginField(char const* n = nullptr, void const* d = nullptr,
                PluginFieldType t = PluginFieldType::kUNKNOWN, int32_t l = 0) noexcept
        : name(n), data(d), type(t), length(l) {}
};
struct PluginFieldCollection {
    int32_t nbFields;
    PluginField const* fields;
};

struct IDimensionExpr {
    int64_t value;
};
struct DimsExprs {
    int32_t nbDims;
    IDimensionExpr const* d[Dims::MAX_DIMS];
};
class IExprBuilder {
public:
    virtual ~IExprBuilder() = default;
    virtual IDimensionExpr const* constant(int64_t value) noexcept = 0;
};
class IPluginResourceContext;

class IPluginCapability {
public:
    virtual ~IPluginCapability() noexcept = default;
};
class IPluginV3 {
public:
    virtual ~IPluginV3() noexcept = default;
    virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept = 0;
    virtual IPluginV3* clone() noexcept = 0;
};
class IPluginV3OneCore : public IPluginCapability {
public:
    virtual char const* getPluginName() const noexcept = 0;
    virtual char const* getPluginVersion() const noexcept = 0;
    virtual char const* getPluginNamespace() const noexcept = 0;
};
class IPluginV3OneBuild : public IPluginCapability {
public:
    virtual int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t,
                                    DynamicPluginTensorDesc const*, int32_t) noexcept = 0;
    virtual int32_t getOutputDataTypes(DataType*, int32_t, DataType const*,
                                       int32_t) const noexcept = 0;
    virtual int32_t getOutputShapes(DimsExprs const*, int32_t, DimsExprs const*, int32_t, DimsExprs*,
                                    int32_t, IExprBuilder&) noexcept = 0;
    virtual bool supportsFormatCombination(int32_t, DynamicPluginTensorDesc const*, int32_t,
                                           int32_t) noexcept = 0;
    virtual int32_t getNbOutputs() const noexcept = 0;
    virtual std::size_t getWorkspaceSize(DynamicPluginTensorDesc const*, int32_t,
                                         DynamicPluginTensorDesc const*, int32_t) const noexcept = 0;
};
class IPluginV3OneRuntime : public IPluginCapability {
public:
    virtual int32_t onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*,
                                  int32_t) noexcept = 0;
    virtual int32_t enqueue(PluginTensorDesc const*, PluginTensorDesc const*, void const* const*,
                            void* const*, void*, cudaStream_t) noexcept = 0;
    virtual IPluginV3* attachToContext(IPluginResourceContext*) noexcept = 0;
    virtual PluginFieldCollection const* getFieldsToSerialize() noexcept = 0;
};
class IPluginCreatorV3One {
public:
    virtual ~IPluginCreatorV3One() = default;
    virtual IPluginV3* createPlugin(char const*, PluginFieldCollection const*,
                                    TensorRTPhase) noexcept = 0;
    virtual PluginFieldCollection const* getFieldNames() noexcept = 0;
    virtual char const* getPluginName() const noexcept = 0;
    virtual char const* getPluginVersion() const noexcept = 0;
    virtual char const* getPluginNamespace() const noexcept = 0;
};

}  // namespace nvinfer1
