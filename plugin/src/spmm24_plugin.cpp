#include "spmm24_plugin.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <utility>

#include "unpack24.hpp"

namespace onnx24 {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace {

constexpr char kName[] = "SpMM24";
constexpr char kVersion[] = "1";
// Where TensorRT's ONNX parser looks for a node without an attribute plugin_namespace, whatever its
// domain. Source: onnx-tensorrt 10.1, FallbackPluginImporter.
constexpr char kNamespace[] = "";
constexpr std::size_t kAlign = 256;

std::function<std::shared_ptr<Session>()>& session_source() {
    static std::function<std::shared_ptr<Session>()> source;
    return source;
}

void report(char const* where, char const* what) noexcept {
    std::fprintf(stderr, "[onnx24::SpMM24] %s: %s\n", where, what);
}

// Nothing may leave a plugin's function as an exception.
template <typename F>
int32_t guarded(char const* where, F const& work) noexcept {
    try {
        return work();
    } catch (std::exception const& err) {
        report(where, err.what());
    } catch (...) {
        report(where, "unknown failure");
    }
    return -1;
}

DataType tensorrt_type(int32_t onnx) {
    switch (static_cast<Type>(onnx)) {
        case Type::kInt8: return DataType::kINT8;
        case Type::kFloat16: return DataType::kHALF;
        case Type::kBFloat16: return DataType::kBF16;
        case Type::kFloat: break;
    }
    return DataType::kFLOAT;
}

std::size_t aligned(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

std::size_t bytes_of(int64_t rows, int64_t columns, int32_t type) {
    return static_cast<std::size_t>(rows * columns) * size_of(static_cast<Type>(type));
}

int64_t rows_of(nvinfer1::Dims const& x) {
    int64_t rows = 1;
    for (int32_t i = 0; i + 1 < x.nbDims; ++i) rows *= x.d[i];
    return rows;
}

}  // namespace

// --- the session ------------------------------------------------------------------------------
Session::Session(std::unique_ptr<Library> made, Choices choices)
    : library(std::move(made)), cache(*library, std::move(choices)) {}

void set_session_source(std::function<std::shared_ptr<Session>()> source) {
    session_source() = std::move(source);
}

std::shared_ptr<Session> current_session() {
    if (!session_source()) throw std::runtime_error("the plugin was built without cuSPARSELt");
    return session_source()();
}

std::string problem_with(Attributes const& a) {
    auto const weight = static_cast<Type>(a.dtype), result = static_cast<Type>(a.out);
    if (!is_product(weight, result))
        return std::string("cuSPARSELt has no 2:4 product of ") + name_of(weight) + " with a " +
               name_of(result) + " result";
    int32_t const multiple = weight == Type::kInt8 ? 32 : 16;
    if (a.k < multiple || a.n < multiple || a.k % multiple != 0 || a.n % multiple != 0)
        return "K = " + std::to_string(a.k) + ", N = " + std::to_string(a.n) +
               ": expected multiples of " + std::to_string(multiple);
    return "";
}

// --- what was reserved ------------------------------------------------------------------------
void Reservations::add(int64_t bucket, std::size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto const [it, is_new] = bytes_.emplace(bucket, bytes);
    if (!is_new) it->second = std::min(it->second, bytes);
}

std::size_t Reservations::limit(int64_t rows) const {
    std::lock_guard<std::mutex> lock(mutex_);
    auto const it = bytes_.lower_bound(bucket_of(rows));
    if (it == bytes_.end())
        throw std::runtime_error("no workspace was reserved for " + std::to_string(rows) + " rows");
    return it->second;
}

std::vector<int64_t> Reservations::flat() const {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<int64_t> out;
    for (auto const& [bucket, bytes] : bytes_) {
        out.push_back(bucket);
        out.push_back(static_cast<int64_t>(bytes));
    }
    return out;
}

// --- the weight -------------------------------------------------------------------------------
bool Weight::is_ready() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return ready_;
}

float const* Weight::alpha() const {
    return per_channel_ ? static_cast<float const*>(scales_.get()) : &scale_;
}

void Weight::prepare(std::shared_ptr<Session> const& session, CompiledPlan const& plan,
                     void const* values, void const* metadata, void const* scale, void* stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (ready_) return;
    session_ = session;
    Library& library = *session->library;
    Problem const& problem = plan.key().problem;
    int64_t const n = problem.n, k = problem.k;
    std::size_t const itemsize = size_of(problem.weight);
    std::vector<uint8_t> packed(static_cast<std::size_t>(n * k / 2) * itemsize);
    std::vector<int32_t> words(static_cast<std::size_t>(n * words_of_row(k)));
    std::vector<float> scales(problem.per_channel ? static_cast<std::size_t>(n) : 1);
    auto const ok = [&](char const* call, Status status) { check(library, call, status); };
    ok("to_host", library.to_host(packed.data(), values, packed.size(), stream));
    ok("to_host", library.to_host(words.data(), metadata, words.size() * 4, stream));
    ok("to_host", library.to_host(scales.data(), scale, scales.size() * 4, stream));
    ok("synchronize", library.synchronize(stream));
    auto const dense = unpack24(packed.data(), words.data(), n, k, itemsize);

    std::size_t bytes = 0, buffer_bytes = 0;
    ok("compressed_bytes", library.compressed_bytes(plan.structured(), &bytes, &buffer_bytes));
    DeviceBuffer compressed(library, bytes);
    DeviceBuffer const buffer(library, buffer_bytes);
    DeviceBuffer const source(library, dense.size());
    DeviceBuffer device_scales;
    ok("to_device", library.to_device(source.get(), dense.data(), dense.size(), stream));
    if (problem.per_channel) {
        device_scales = DeviceBuffer(library, scales.size() * 4);
        ok("to_device",
           library.to_device(device_scales.get(), scales.data(), scales.size() * 4, stream));
    }
    ok("compress", library.compress(plan.structured(), source.get(), compressed.get(), buffer.get(),
                                    stream));
    ok("synchronize", library.synchronize(stream));
    compressed_ = std::move(compressed);
    scales_ = std::move(device_scales);
    scale_ = scales[0];
    per_channel_ = problem.per_channel;
    ready_ = true;
}

// --- the plugin -------------------------------------------------------------------------------
Spmm24Plugin::Spmm24Plugin(Attributes const& attributes, std::shared_ptr<Reservations> reserved)
    : attributes_(attributes),
      reserved_(std::move(reserved)),
      weight_(std::make_shared<Weight>()) {}

nvinfer1::IPluginCapability* Spmm24Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Spmm24Plugin::clone() noexcept {
    try {
        return new Spmm24Plugin(attributes_, reserved_);
    } catch (std::exception const& err) {
        report("clone", err.what());
        return nullptr;
    }
}

char const* Spmm24Plugin::getPluginName() const noexcept { return kName; }
char const* Spmm24Plugin::getPluginVersion() const noexcept { return kVersion; }
char const* Spmm24Plugin::getPluginNamespace() const noexcept { return kNamespace; }
int32_t Spmm24Plugin::getNbOutputs() const noexcept { return 1; }

int32_t Spmm24Plugin::getOutputDataTypes(DataType* outputs, int32_t outputCount, DataType const*,
                                         int32_t inputCount) const noexcept {
    if (outputCount != 1 || inputCount != 4) return -1;
    outputs[0] = tensorrt_type(attributes_.out);
    return 0;
}

int32_t Spmm24Plugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t inputCount,
                                      nvinfer1::DimsExprs const*, int32_t,
                                      nvinfer1::DimsExprs* outputs, int32_t outputCount,
                                      nvinfer1::IExprBuilder& builder) noexcept {
    if (outputCount != 1 || inputCount != 4 || inputs[0].nbDims < 1) return -1;
    outputs[0] = inputs[0];
    outputs[0].d[inputs[0].nbDims - 1] = builder.constant(attributes_.n);
    return 0;
}

bool Spmm24Plugin::supportsFormatCombination(int32_t position,
                                             nvinfer1::DynamicPluginTensorDesc const* tensors,
                                             int32_t inputCount, int32_t outputCount) noexcept {
    if (inputCount != 4 || outputCount != 1 || position < 0 || position > 4) return false;
    DataType const types[] = {tensorrt_type(attributes_.dtype), tensorrt_type(attributes_.dtype),
                              DataType::kINT32, DataType::kFLOAT, tensorrt_type(attributes_.out)};
    auto const& desc = tensors[position].desc;
    return desc.type == types[position] && desc.format == nvinfer1::TensorFormat::kLINEAR;
}

int32_t Spmm24Plugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs,
                                      int32_t inputCount, nvinfer1::DynamicPluginTensorDesc const*,
                                      int32_t outputCount) noexcept {
    return guarded("configure", [&]() -> int32_t {
        std::string const problem = problem_with(attributes_);
        if (!problem.empty()) throw std::invalid_argument(problem);
        if (inputCount != 4 || outputCount != 1) throw std::invalid_argument("expected 4 inputs");
        auto const& x = inputs[0].desc.dims;
        auto const& values = inputs[1].desc.dims;
        auto const& words = inputs[2].desc.dims;
        auto const& scale = inputs[3].desc.dims;
        int64_t const last = x.nbDims > 0 ? x.d[x.nbDims - 1] : 0;
        if (last != attributes_.k && last != -1)
            throw std::invalid_argument("x does not end in K = " + std::to_string(attributes_.k));
        if (values.nbDims != 2 || values.d[0] != attributes_.n || values.d[1] != attributes_.k / 2)
            throw std::invalid_argument("values are not [N, K/2]");
        if (words.nbDims != 2 || words.d[0] != attributes_.n ||
            words.d[1] != words_of_row(attributes_.k))
            throw std::invalid_argument("metadata are not [N, ceil(K/32)]");
        if (scale.nbDims != 1 || (scale.d[0] != 1 && scale.d[0] != attributes_.n))
            throw std::invalid_argument("scale is neither [1] nor [N]");
        return 0;
    });
}

Problem Spmm24Plugin::problem(bool per_channel) const {
    return {static_cast<Type>(attributes_.dtype), static_cast<Type>(attributes_.out), attributes_.n,
            attributes_.k, per_channel};
}

std::size_t Spmm24Plugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs,
                                           int32_t inputCount,
                                           nvinfer1::DynamicPluginTensorDesc const*,
                                           int32_t) const noexcept {
    std::size_t bytes = 0;
    guarded("workspace", [&]() -> int32_t {
        if (inputCount != 4) throw std::invalid_argument("expected 4 inputs");
        int64_t const rows = std::max<int64_t>(rows_of(inputs[0].max), 1);
        int64_t const bucket = bucket_of(rows);
        Problem const wanted = problem(inputs[3].desc.dims.d[0] != 1);
        auto const session = current_session();
        // The largest of all buckets: a small one with split-k may need more than a large one.
        std::size_t library = 0;
        for (int64_t each : buckets_up_to(rows))
            library = std::max(library, session->cache.at(wanted, each)->workspace_bytes());
        reserved_->add(bucket, library);
        bytes = aligned(library) + aligned(bytes_of(bucket, attributes_.k, attributes_.dtype)) +
                bytes_of(bucket, attributes_.n, attributes_.out);
        return 0;
    });
    return bytes;
}

int32_t Spmm24Plugin::onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t inputCount,
                                    nvinfer1::PluginTensorDesc const*,
                                    int32_t outputCount) noexcept {
    return guarded("shape", [&]() -> int32_t {
        std::string const wrong = problem_with(attributes_);
        if (!wrong.empty()) throw std::invalid_argument(wrong);
        if (inputCount != 4 || outputCount != 1) throw std::invalid_argument("expected 4 inputs");
        plan_ = nullptr;
        rows_ = rows_of(inputs[0].dims);
        if (rows_ == 0) return 0;
        if (session_ == nullptr) session_ = current_session();
        plan_ = session_->cache.at(problem(inputs[3].dims.d[0] != 1), rows_,
                                   reserved_->limit(rows_));
        return 0;
    });
}

int32_t Spmm24Plugin::enqueue(nvinfer1::PluginTensorDesc const*, nvinfer1::PluginTensorDesc const*,
                              void const* const* inputs, void* const* outputs, void* workspace,
                              cudaStream_t stream) noexcept {
    return guarded("enqueue", [&]() -> int32_t {
        if (rows_ == 0) return 0;
        if (plan_ == nullptr) throw std::runtime_error("no plan: shapes were never set");
        Library& library = *session_->library;
        if (!weight_->is_ready()) {
            if (library.is_capturing(stream))
                throw std::runtime_error(
                    "run once before capturing a CUDA graph: the weight is not compressed yet");
            weight_->prepare(session_, *plan_, inputs[1], inputs[2], inputs[3], stream);
        }
        int64_t const bucket = plan_->bucket();
        void const* x = inputs[0];
        void* y = outputs[0];
        if (bucket != rows_) {
            // The plan reads and writes whole buckets. Rows beyond the real ones hold anything:
            // each row of y depends on its own row of x only.
            auto* const memory =
                static_cast<unsigned char*>(workspace) + aligned(plan_->workspace_bytes());
            check(library, "copy",
                  library.copy(memory, x, bytes_of(rows_, attributes_.k, attributes_.dtype),
                               stream));
            x = memory;
            y = memory + aligned(bytes_of(bucket, attributes_.k, attributes_.dtype));
        }
        plan_->multiply(weight_->alpha(), weight_->compressed(), x, y, workspace, stream);
        if (y != outputs[0])
            check(library, "copy",
                  library.copy(outputs[0], y, bytes_of(rows_, attributes_.n, attributes_.out),
                               stream));
        return 0;
    });
}

nvinfer1::IPluginV3* Spmm24Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
    try {
        auto plugin = std::make_unique<Spmm24Plugin>(attributes_, reserved_);
        // Contexts of one engine share the weight, but not what a shape change sets.
        plugin->session_ = current_session();
        plugin->weight_ = weight_;
        return plugin.release();
    } catch (std::exception const& err) {
        report("attach", err.what());
        return nullptr;
    }
}

nvinfer1::PluginFieldCollection const* Spmm24Plugin::getFieldsToSerialize() noexcept {
    try {
        flat_ = reserved_->flat();
        fields_ = {PluginField("K", &attributes_.k, PluginFieldType::kINT32, 1),
                   PluginField("N", &attributes_.n, PluginFieldType::kINT32, 1),
                   PluginField("dtype", &attributes_.dtype, PluginFieldType::kINT32, 1),
                   PluginField("out", &attributes_.out, PluginFieldType::kINT32, 1),
                   PluginField("workspace", flat_.data(), PluginFieldType::kINT64,
                               static_cast<int32_t>(flat_.size()))};
    } catch (std::exception const& err) {
        report("serialize", err.what());
        return nullptr;
    }
    serialized_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &serialized_;
}

// --- the creator ------------------------------------------------------------------------------
Spmm24Creator::Spmm24Creator() {
    for (char const* name : {"K", "N", "dtype", "out"})
        fields_.emplace_back(name, nullptr, PluginFieldType::kINT32, 1);
    names_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

char const* Spmm24Creator::getPluginName() const noexcept { return kName; }
char const* Spmm24Creator::getPluginVersion() const noexcept { return kVersion; }
char const* Spmm24Creator::getPluginNamespace() const noexcept { return kNamespace; }
nvinfer1::PluginFieldCollection const* Spmm24Creator::getFieldNames() noexcept { return &names_; }

nvinfer1::IPluginV3* Spmm24Creator::createPlugin(char const*,
                                                 nvinfer1::PluginFieldCollection const* fields,
                                                 nvinfer1::TensorRTPhase) noexcept {
    nvinfer1::IPluginV3* made = nullptr;
    guarded("create", [&]() -> int32_t {
        if (fields == nullptr) throw std::invalid_argument("no attributes");
        Attributes a;
        auto reserved = std::make_shared<Reservations>();
        for (int32_t i = 0; i < fields->nbFields; ++i) {
            PluginField const& field = fields->fields[i];
            if (field.name == nullptr || field.data == nullptr) continue;
            std::string const name = field.name;
            if (name == "workspace" && field.type == PluginFieldType::kINT64) {
                auto const* const flat = static_cast<int64_t const*>(field.data);
                for (int32_t at = 0; at + 1 < field.length; at += 2)
                    reserved->add(flat[at], static_cast<std::size_t>(flat[at + 1]));
                continue;
            }
            if (field.length != 1) continue;
            int64_t value = 0;
            if (field.type == PluginFieldType::kINT32)
                value = *static_cast<int32_t const*>(field.data);
            else if (field.type == PluginFieldType::kINT64)
                std::memcpy(&value, field.data, sizeof value);
            else
                continue;
            auto const narrow = static_cast<int32_t>(value);
            if (narrow != value) throw std::invalid_argument(name + " is too large");
            if (name == "K") a.k = narrow;
            if (name == "N") a.n = narrow;
            if (name == "dtype") a.dtype = narrow;
            if (name == "out") a.out = narrow;
        }
        std::string const problem = problem_with(a);
        if (!problem.empty()) throw std::invalid_argument(problem);
        made = new Spmm24Plugin(a, std::move(reserved));
        return 0;
    });
    return made;
}

}  // namespace onnx24

#ifndef ONNX24_WITHOUT_REGISTRATION
using onnx24::Spmm24Creator;
REGISTER_TENSORRT_PLUGIN(Spmm24Creator);
#endif
