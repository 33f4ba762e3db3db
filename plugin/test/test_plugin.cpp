// The plugin's life, from creator to enqueue, on the fake library and the hand-written NvInfer.h.
#include <cstdlib>
#include <memory>
#include <thread>

#include "fake_library.hpp"
#include "spmm24_plugin.hpp"
#include "testing.hpp"

using namespace onnx24;
using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorRTPhase;

namespace {

constexpr int kK = 32, kN = 32;

struct Bench {
    std::shared_ptr<Session> session;
    FakeLibrary* library;

    explicit Bench(Choices choices = {}) {
        auto made = std::make_unique<FakeLibrary>();
        library = made.get();
        session = std::make_shared<Session>(std::move(made), std::move(choices));
        auto shared = session;
        set_session_source([shared] { return shared; });
    }
    ~Bench() {
        set_session_source(nullptr);
        for (auto const& error : library->errors()) {
            std::printf("the library complains: %s\n", error.c_str());
            ++testing::complaints();
        }
    }
};

using PluginPtr = std::unique_ptr<Spmm24Plugin>;

PluginPtr create(std::vector<PluginField> const& fields,
                 TensorRTPhase phase = TensorRTPhase::kBUILD) {
    nvinfer1::PluginFieldCollection const all{static_cast<int32_t>(fields.size()), fields.data()};
    Spmm24Creator creator;
    return PluginPtr(static_cast<Spmm24Plugin*>(creator.createPlugin("layer", &all, phase)));
}

PluginPtr create(int32_t k, int32_t n, int32_t dtype, int32_t out) {
    return create({PluginField("K", &k, PluginFieldType::kINT32, 1),
                   PluginField("N", &n, PluginFieldType::kINT32, 1),
                   PluginField("dtype", &dtype, PluginFieldType::kINT32, 1),
                   PluginField("out", &out, PluginFieldType::kINT32, 1)});
}

// x [2, rows/2, K] or [rows, K], and the others; the weight is that of `Data`.
struct Shapes {
    nvinfer1::DynamicPluginTensorDesc tensors[5];
    nvinfer1::PluginTensorDesc fixed[5];

    Shapes(int64_t rows, int64_t scales, DataType type, DataType out, int64_t max_rows = 64) {
        auto const set = [](Dims& dims, std::vector<int64_t> const& sizes) {
            dims.nbDims = static_cast<int32_t>(sizes.size());
            for (std::size_t i = 0; i < sizes.size(); ++i) dims.d[i] = sizes[i];
        };
        DataType const types[] = {type, type, DataType::kINT32, DataType::kFLOAT, out};
        for (int i = 0; i < 5; ++i) {
            fixed[i] = {{}, types[i], nvinfer1::TensorFormat::kLINEAR, 1.0f};
            tensors[i].desc = fixed[i];
        }
        set(tensors[0].desc.dims, {-1, kK});
        set(tensors[0].max, {max_rows, kK});
        set(tensors[1].desc.dims, {kN, kK / 2});
        set(tensors[2].desc.dims, {kN, kK / 32});
        set(tensors[3].desc.dims, {scales});
        for (int i = 1; i < 4; ++i) fixed[i].dims = tensors[i].desc.dims;
        set(fixed[0].dims, {rows, kK});
        set(fixed[4].dims, {rows, kN});
    }
};

// W[n, 4g + 1] and W[n, 4g + 3] are set: nibble 1 | 3 << 2 = 13.
template <typename T>
struct Data {
    std::vector<T> values = std::vector<T>(kN * kK / 2), x;
    std::vector<int32_t> words = std::vector<int32_t>(kN * kK / 32, static_cast<int32_t>(0xDDDDDDDD));
    std::vector<float> scale;

    Data(int64_t rows, std::vector<float> s, T (*make)(float)) : scale(std::move(s)) {
        for (std::size_t i = 0; i < values.size(); ++i)
            values[i] = make(static_cast<float>(static_cast<int>(i * 7 % 11) - 5));
        for (std::size_t i = 0; i < static_cast<std::size_t>(rows) * kK; ++i)
            x.push_back(make(static_cast<float>(static_cast<int>(i * 5 % 9) - 4)));
    }
    // What y[m, n] should be, before rounding.
    float expected(std::size_t m, std::size_t n, float (*number)(T)) const {
        float sum = 0;
        for (std::size_t g = 0; g < kK / 4; ++g)
            for (std::size_t i = 0; i < 2; ++i)
                sum += number(values[n * kK / 2 + 2 * g + i]) *
                       number(x[m * kK + 4 * g + 1 + 2 * i]);
        return sum * scale[scale.size() == 1 ? 0 : n];
    }
};

int8_t to_int8(float v) { return static_cast<int8_t>(v); }
float from_int8(int8_t v) { return v; }

// Build, serialize, read back, attach: what TensorRT does between a network and a context.
PluginPtr through_an_engine(Spmm24Plugin& built, Shapes const& shapes) {
    EXPECT(built.configurePlugin(shapes.tensors, 4, shapes.tensors + 4, 1) == 0);
    PluginPtr const timed(static_cast<Spmm24Plugin*>(built.clone()));
    EXPECT(timed->getWorkspaceSize(shapes.tensors, 4, shapes.tensors + 4, 1) > 0);
    auto const* const fields = built.getFieldsToSerialize();
    auto const engine = create(
        std::vector<PluginField>(fields->fields, fields->fields + fields->nbFields),
        TensorRTPhase::kRUNTIME);
    return PluginPtr(static_cast<Spmm24Plugin*>(engine->attachToContext(nullptr)));
}

template <typename T>
std::vector<uint16_t> run(Spmm24Plugin& plugin, Data<T> const& data, Shapes const& shapes,
                          int32_t expected_status = 0) {
    auto const rows = static_cast<std::size_t>(shapes.fixed[0].dims.d[0]);
    // Sizes as getWorkspaceSize reserves them for 64 rows, in a block that sanitizers watch.
    std::size_t const bytes = plugin.getWorkspaceSize(shapes.tensors, 4, shapes.tensors + 4, 1);
    std::vector<unsigned char> workspace(bytes);
    std::vector<uint16_t> y(rows * kN);
    void const* inputs[] = {data.x.data(), data.values.data(), data.words.data(), data.scale.data()};
    void* outputs[] = {y.data()};
    EXPECT(plugin.enqueue(shapes.fixed, shapes.fixed + 4, inputs, outputs, workspace.data(),
                          nullptr) == expected_status);
    return y;
}

}  // namespace

TEST(float16_rows_that_fill_a_bucket_and_rows_that_do_not) {
    Bench bench;
    for (int64_t rows : {16, 5, 33, 64, 1}) {
        Shapes const shapes(rows, 1, DataType::kHALF, DataType::kHALF);
        auto const built = create(kK, kN, 10, 10);
        auto const plugin = through_an_engine(*built, shapes);
        EXPECT(plugin->onShapeChange(shapes.fixed, 4, shapes.fixed + 4, 1) == 0);
        Data<uint16_t> const data(rows, {0.25f}, float_to_half);
        bench.library->no_creation = true;  // nothing is planned while enqueueing
        auto const y = run(*plugin, data, shapes);
        bench.library->no_creation = false;
        for (std::size_t m = 0; m < static_cast<std::size_t>(rows); ++m)
            for (std::size_t n = 0; n < kN; ++n)
                EXPECT(y[m * kN + n] == float_to_half(data.expected(m, n, half_to_float)));
    }
}

TEST(int8_with_a_scale_for_each_output) {
    Bench bench;
    std::vector<float> scales;
    for (int i = 0; i < kN; ++i) scales.push_back(0.001f * static_cast<float>(i + 1));
    Shapes const shapes(20, kN, DataType::kINT8, DataType::kHALF);
    auto const built = create(kK, kN, 3, 10);
    auto const plugin = through_an_engine(*built, shapes);
    EXPECT(plugin->onShapeChange(shapes.fixed, 4, shapes.fixed + 4, 1) == 0);
    Data<int8_t> const data(20, scales, to_int8);
    auto const y = run(*plugin, data, shapes);
    for (std::size_t m = 0; m < 20; ++m)
        for (std::size_t n = 0; n < kN; ++n)
            EXPECT(y[m * kN + n] == float_to_half(data.expected(m, n, from_int8)));
}

TEST(the_weight_is_compressed_once_for_all_contexts) {
    Bench bench;
    Shapes const shapes(16, 1, DataType::kHALF, DataType::kHALF);
    auto const built = create(kK, kN, 10, 10);
    auto const first = through_an_engine(*built, shapes);
    PluginPtr const second(static_cast<Spmm24Plugin*>(first->attachToContext(nullptr)));
    Data<uint16_t> const data(16, {1.0f}, float_to_half);
    std::vector<std::thread> threads;
    for (Spmm24Plugin* plugin : {first.get(), second.get()}) {
        EXPECT(plugin->onShapeChange(shapes.fixed, 4, shapes.fixed + 4, 1) == 0);
        threads.emplace_back([&, plugin] {
            for (int i = 0; i < 5; ++i) run(*plugin, data, shapes);
        });
    }
    for (auto& thread : threads) thread.join();
    EXPECT(bench.library->calls("compress") == 1 && bench.library->calls("multiply") == 10);
}

TEST(plans_are_made_when_shapes_change) {
    Bench bench;
    Shapes const shapes(7, 1, DataType::kHALF, DataType::kHALF, 512);
    auto const built = create(kK, kN, 10, 10);
    auto const plugin = through_an_engine(*built, shapes);
    EXPECT(bench.session->cache.counts().made == 32);  // all buckets of the profile, at build time
    for (int64_t rows : {7, 16, 3, 500, 7}) {
        Shapes const at(rows, 1, DataType::kHALF, DataType::kHALF, 512);
        EXPECT(plugin->onShapeChange(at.fixed, 4, at.fixed + 4, 1) == 0);
    }
    EXPECT(bench.session->cache.counts().made == 32);
    Shapes const above(513, 1, DataType::kHALF, DataType::kHALF, 512);
    EXPECT(plugin->onShapeChange(above.fixed, 4, above.fixed + 4, 1) != 0);
}

TEST(no_rows_no_work) {
    Bench bench;
    Shapes const shapes(0, 1, DataType::kHALF, DataType::kHALF);
    auto const built = create(kK, kN, 10, 10);
    auto const plugin = through_an_engine(*built, shapes);
    EXPECT(plugin->onShapeChange(shapes.fixed, 4, shapes.fixed + 4, 1) == 0);
    run(*plugin, Data<uint16_t>(0, {1.0f}, float_to_half), shapes);
    EXPECT(bench.library->calls("multiply") == 0);
}

TEST(a_graph_capture_before_the_first_run_is_refused) {
    Bench bench;
    Shapes const shapes(16, 1, DataType::kHALF, DataType::kHALF);
    auto const built = create(kK, kN, 10, 10);
    auto const plugin = through_an_engine(*built, shapes);
    plugin->onShapeChange(shapes.fixed, 4, shapes.fixed + 4, 1);
    Data<uint16_t> const data(16, {1.0f}, float_to_half);
    bench.library->capturing = true;
    run(*plugin, data, shapes, -1);
    bench.library->capturing = false;
    run(*plugin, data, shapes);
    bench.library->capturing = true;
    run(*plugin, data, shapes);
}

TEST(failures_come_back_as_a_status_and_leave_nothing) {
    char const* const calls[] = {"allocate", "to_host",  "to_device", "synchronize",
                                 "compress", "multiply", "copy",      "compressed_bytes"};
    for (char const* call : calls) {
        Bench bench;
        {
            Shapes const shapes(5, 1, DataType::kHALF, DataType::kHALF);
            auto const built = create(kK, kN, 10, 10);
            auto const plugin = through_an_engine(*built, shapes);
            plugin->onShapeChange(shapes.fixed, 4, shapes.fixed + 4, 1);
            Data<uint16_t> const data(5, {1.0f}, float_to_half);
            bench.library->fail(call);
            run(*plugin, data, shapes, -1);
            run(*plugin, data, shapes);
        }
        EXPECT(bench.library->live() == 6 * bench.session->cache.size());
    }
}

TEST(damaged_metadata_are_refused) {
    Bench bench;
    Shapes const shapes(16, 1, DataType::kHALF, DataType::kHALF);
    auto const built = create(kK, kN, 10, 10);
    auto const plugin = through_an_engine(*built, shapes);
    plugin->onShapeChange(shapes.fixed, 4, shapes.fixed + 4, 1);
    Data<uint16_t> data(16, {1.0f}, float_to_half);
    data.words[3] = 0;
    run(*plugin, data, shapes, -1);
    EXPECT(bench.library->calls("compress") == 0);
}

TEST(a_workspace_that_was_never_reserved) {
    Bench bench;
    Shapes const shapes(16, 1, DataType::kHALF, DataType::kHALF);
    auto const plugin = create(kK, kN, 10, 10);
    EXPECT(plugin->onShapeChange(shapes.fixed, 4, shapes.fixed + 4, 1) != 0);
    // Choices of today that need more than the build of yesterday reserved fall back.
    auto const built = create(kK, kN, 10, 10);
    auto const context = through_an_engine(*built, shapes);
    Choices choices;
    choices.set({90, 1000, {Type::kFloat16, Type::kFloat16, kN, kK, false}, 16}, {5, -1, -1, -1});
    Bench today(choices);
    EXPECT(context->onShapeChange(shapes.fixed, 4, shapes.fixed + 4, 1) == 0);
    PluginPtr const again(static_cast<Spmm24Plugin*>(context->attachToContext(nullptr)));
    EXPECT(again->onShapeChange(shapes.fixed, 4, shapes.fixed + 4, 1) == 0);
    EXPECT(today.session->cache.counts().fallbacks == 1);
}

TEST(reservations) {
    Reservations reserved;
    EXPECT_RAISES(std::runtime_error, reserved.limit(1), "no workspace");
    reserved.add(16, 100);
    reserved.add(512, 300);
    reserved.add(512, 200);
    EXPECT(reserved.limit(16) == 100 && reserved.limit(17) == 200 && reserved.limit(500) == 200);
    EXPECT((reserved.flat() == std::vector<int64_t>{16, 100, 512, 200}));
    EXPECT_RAISES(std::runtime_error, reserved.limit(513), "513 rows");
}

TEST(what_is_no_product_is_refused) {
    EXPECT(create(kK, kN, 1, 1) == nullptr);    // float32 is 1:2
    EXPECT(create(kK, kN, 3, 1) == nullptr);    // int8 with a float32 result
    EXPECT(create(kK, kN, 10, 16) == nullptr);  // fp16 with a bf16 result
    EXPECT(create(24, kN, 10, 10) == nullptr);
    EXPECT(create(kK, 0, 10, 10) == nullptr);
    EXPECT(create(48, kN, 3, 10) == nullptr);
    EXPECT(create(48, 48, 10, 10) != nullptr && create(kK, kN, 16, 16) != nullptr);
    EXPECT(create({}) == nullptr);
    Spmm24Creator creator;
    EXPECT(creator.createPlugin("", nullptr, TensorRTPhase::kBUILD) == nullptr);
    EXPECT(creator.getFieldNames()->nbFields == 4);
}

TEST(shapes_types_and_formats) {
    struct Builder : nvinfer1::IExprBuilder {
        nvinfer1::IDimensionExpr made{0};
        nvinfer1::IDimensionExpr const* constant(int64_t value) noexcept override {
            made.value = value;
            return &made;
        }
    } builder;
    auto const plugin = create(kK, kN, 3, 16);
    nvinfer1::IDimensionExpr const batch{-1}, tokens{-1}, k{kK};
    nvinfer1::DimsExprs inputs[4] = {{3, {&batch, &tokens, &k}}, {}, {}, {}}, output;
    EXPECT(plugin->getOutputShapes(inputs, 4, nullptr, 0, &output, 1, builder) == 0);
    EXPECT(output.nbDims == 3 && output.d[0] == &batch && output.d[2]->value == kN);
    DataType type{};
    EXPECT(plugin->getOutputDataTypes(&type, 1, nullptr, 4) == 0 && type == DataType::kBF16);
    Shapes shapes(16, 1, DataType::kINT8, DataType::kBF16);
    for (int i = 0; i < 5; ++i) EXPECT(plugin->supportsFormatCombination(i, shapes.tensors, 4, 1));
    shapes.tensors[0].desc.format = nvinfer1::TensorFormat::kCHW2;
    shapes.tensors[4].desc.type = DataType::kHALF;
    EXPECT(!plugin->supportsFormatCombination(0, shapes.tensors, 4, 1));
    EXPECT(!plugin->supportsFormatCombination(4, shapes.tensors, 4, 1));
    shapes.tensors[2].desc.dims.d[1] = 2;
    EXPECT(plugin->configurePlugin(shapes.tensors, 4, shapes.tensors + 4, 1) != 0);
    for (auto kind : {nvinfer1::PluginCapabilityType::kCORE, nvinfer1::PluginCapabilityType::kBUILD,
                      nvinfer1::PluginCapabilityType::kRUNTIME})
        EXPECT(plugin->getCapabilityInterface(kind) != nullptr);
}

int main() {
    // What the plugin says of the failures that are provoked here.
    if (std::freopen("/dev/null", "w", stderr) == nullptr) return 2;
    return testing::run_all();
}
