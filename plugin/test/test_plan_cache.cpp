#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "fake_library.hpp"
#include "plan_cache.hpp"
#include "testing.hpp"
#include "unpack24.hpp"

using namespace onnx24;

namespace {

Problem const kProblem{Type::kFloat16, Type::kFloat16, 32, 64, false};

void expect_clean(FakeLibrary const& library) {
    EXPECT(library.live() == 0);
    for (auto const& error : library.errors()) {
        std::printf("the library complains: %s\n", error.c_str());
        ++testing::complaints();
    }
}

std::string temporary(char const* name) {
    char const* folder = std::getenv("TMPDIR");
    return (folder ? std::string(folder) + "/" : std::string()) + "onnx24-test-" + name;
}

Tuned tuned(int64_t bucket, int sm = 90, int library = 1000) {
    return Tuned{sm, library, kProblem, bucket};
}

}  // namespace

TEST(buckets) {
    EXPECT(bucket_of(1) == 16 && bucket_of(16) == 16 && bucket_of(17) == 32);
    EXPECT(bucket_of(511) == 512 && bucket_of(512) == 512);
    EXPECT(bucket_of(513) == 576 && bucket_of(1024) == 1024 && bucket_of(1025) == 1152);
    int64_t last = 0;
    for (int64_t rows = 1; rows <= 20000; ++rows) {
        int64_t const bucket = bucket_of(rows);
        EXPECT(bucket >= rows && bucket % 16 == 0 && bucket >= last);
        EXPECT(bucket_of(bucket) == bucket);
        EXPECT(bucket - rows < 16 || (bucket - rows) * 8 < rows);
        last = bucket;
    }
    EXPECT(bucket_of(int64_t{1} << 30) == int64_t{1} << 30);
    EXPECT_RAISES(std::invalid_argument, bucket_of(0), "0 rows");
    EXPECT_RAISES(std::invalid_argument, bucket_of((int64_t{1} << 30) + 1), "rows");
    EXPECT(buckets_up_to(8192).size() == 64);
    EXPECT(buckets_up_to(1) == std::vector<int64_t>{16});
    EXPECT(buckets_up_to(int64_t{1} << 30).back() == int64_t{1} << 30);
}

TEST(a_plan_serves_its_bucket) {
    FakeLibrary library;
    {
        PlanCache cache(library);
        auto const first = cache.at(kProblem, 3);
        EXPECT(first->bucket() == 16 && cache.at(kProblem, 16) == first);
        EXPECT(cache.at(kProblem, 17) != first);
        EXPECT(cache.find(kProblem, 9) == first && cache.find(kProblem, 100) == nullptr);
        auto const counts = cache.counts();
        EXPECT(counts.made == 2 && counts.hits == 1 && counts.evicted == 0);
        EXPECT(library.calls("create_plan") == 2 && cache.size() == 2);
    }
    expect_clean(library);
}

TEST(every_part_of_a_problem_is_part_of_the_key) {
    FakeLibrary library;
    PlanCache cache(library);
    std::vector<Problem> problems(6, kProblem);
    problems[1].n = 48;
    problems[2].k = 128;
    problems[3].per_channel = true;
    problems[4].weight = problems[4].result = Type::kBFloat16;
    problems[5].weight = Type::kInt8;
    for (auto const& problem : problems) cache.at(problem, 5);
    EXPECT(cache.counts().made == 6 && library.calls("set_alpha_vector") == 1);

    PlanKey key;
    for (int part = 0; part < 6; ++part) {
        PlanKey other;
        (part == 0 ? other.device : part == 1 ? other.sm : part == 2 ? other.library
         : part == 3 ? other.choice.algorithm : part == 4 ? other.choice.split_k
                                                          : other.choice.split_k_mode) = 5;
        EXPECT(key < other || other < key);
    }
}

TEST(layouts_are_those_of_row_major_activations) {
    FakeLibrary library;
    PlanCache cache(library);
    Problem problem = kProblem;
    problem.n = 16;
    problem.k = 32;
    auto const plan = cache.at(problem, 2);
    std::vector<uint16_t> w(16 * 32), x(16 * 32), y(16 * 16);
    for (std::size_t i = 0; i < w.size(); ++i) w[i] = float_to_half(static_cast<float>(i % 13) - 6);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = float_to_half(static_cast<float>(i % 7) - 3);
    float const alpha = 0.5f;
    plan->multiply(&alpha, w.data(), x.data(), y.data(), nullptr, nullptr);
    for (int m = 0; m < 16; ++m)
        for (int n = 0; n < 16; ++n) {
            float sum = 0;
            for (int k = 0; k < 32; ++k)
                sum += half_to_float(x[static_cast<std::size_t>(m * 32 + k)]) *
                       half_to_float(w[static_cast<std::size_t>(n * 32 + k)]);
            EXPECT(half_to_float(y[static_cast<std::size_t>(m * 16 + n)]) == 0.5f * sum);
        }
}

TEST(the_least_recently_used_goes_and_lives_while_it_is_held) {
    FakeLibrary library;
    {
        PlanCache::PlanPtr held;
        {
            PlanCache cache(library, {}, 2);
            held = cache.at(kProblem, 16);
            cache.at(kProblem, 32);
            cache.at(kProblem, 16);  // used again, so that 32 is the oldest
            cache.at(kProblem, 48);
            EXPECT(cache.find(kProblem, 32) == nullptr && cache.find(kProblem, 16) == held);
            cache.at(kProblem, 64);
            EXPECT(cache.find(kProblem, 16) == nullptr && cache.size() == 2);
            EXPECT(cache.counts().evicted == 2);
        }
        EXPECT(library.live() == 6);  // the plan that is still held: 3 matrices and 3 more
        EXPECT(held->bucket() == 16);
    }
    expect_clean(library);
}

TEST(one_workspace_of_the_largest_size) {
    FakeLibrary library;
    PlanCache cache(library, {}, 1);
    EXPECT(cache.workspace_bytes() == 0);
    cache.at(kProblem, 512);
    cache.at(kProblem, 16);
    EXPECT(cache.workspace_bytes() == 1512);
    EXPECT_RAISES(std::runtime_error, cache.at(kProblem, 1024, 1100), "more workspace");
    EXPECT(cache.workspace_bytes() == 1512);
}

TEST(no_call_that_fails_leaves_anything_behind) {
    char const* const calls[] = {"create_structured", "create_dense",     "create_matmul",
                                 "set_alpha_vector",  "create_selection", "set_choice",
                                 "create_plan",       "workspace_bytes"};
    Problem problem = kProblem;
    problem.per_channel = true;
    for (char const* call : calls)
        for (int nth = 1; nth <= 2; ++nth) {
            FakeLibrary library;
            {
                Choices choices;
                choices.set({90, 1000, problem, 16}, Choice{4, 1, -1, -1});
                PlanCache cache(library, choices);
                library.fail(call, nth);
                try {
                    cache.at(problem, 1);
                } catch (LibraryError const&) {
                }
                EXPECT(library.live() == 6 * cache.size());
                EXPECT(cache.at(problem, 1) != nullptr);  // and the next try succeeds
            }
            expect_clean(library);
        }
    FakeLibrary library;
    PlanCache cache(library);
    library.fail("create_plan");
    EXPECT_RAISES(LibraryError, cache.at(kProblem, 1), "create_plan: a fault for the test (6)");
    EXPECT(library.live() == 0 && cache.size() == 0);
}

TEST(what_a_search_found_is_used) {
    FakeLibrary library;
    {
        PlanCache cache(library);
        auto const before = cache.at(kProblem, 100);
        float const alpha = 1;
        Choice const found =
            cache.search(kProblem, 100, &alpha, nullptr, nullptr, nullptr, nullptr, nullptr);
        EXPECT(found == library.fastest);
        auto const after = cache.at(kProblem, 100);
        EXPECT(after != before && after->key().choice == found);
        EXPECT(cache.find(kProblem, 100) == after && cache.choices().size() == 1);
        EXPECT(cache.at(kProblem, 50)->key().choice.is_default());
        library.fail("search");
        EXPECT_RAISES(LibraryError,
                      cache.search(kProblem, 1, &alpha, nullptr, nullptr, nullptr, nullptr, nullptr),
                      "search");
    }
    expect_clean(library);
}

TEST(a_choice_that_does_not_work_falls_back) {
    FakeLibrary library;
    library.refused_algorithm = 99;
    Choices choices;
    choices.set(tuned(16), Choice{99, -1, -1, -1});
    choices.set(tuned(32), Choice{1, -1, -1, -1});
    PlanCache cache(library, choices);
    EXPECT(cache.at(kProblem, 1)->key().choice.is_default());
    EXPECT(cache.counts().fallbacks == 1 && cache.find(kProblem, 1) != nullptr);
    // Its workspace is 5,000 bytes more than there are.
    EXPECT(cache.at(kProblem, 32, 2000)->key().choice.is_default());
    EXPECT(cache.at(kProblem, 32)->key().choice.algorithm == 1);
}

TEST(choices_of_another_gpu_or_library_are_not_used) {
    Choices choices;
    choices.set(tuned(16), Choice{1, -1, -1, -1});
    FakeLibrary same, older(90, 801), other(89, 1000);
    for (FakeLibrary* library : {&same, &older, &other}) {
        PlanCache cache(*library, choices);
        EXPECT(cache.at(kProblem, 1)->key().choice.is_default() == (library != &same));
    }
}

TEST(a_file_keeps_the_choices) {
    Choices choices;
    for (int i = 1; i <= 50; ++i) choices.set(tuned(16 * i), Choice{i, i % 4 - 1, i % 3 - 1, i});
    std::string const path = temporary("choices");
    choices.save(path);
    choices.save(path);  // over an older one
    Choices const read = Choices::load(path);
    EXPECT(read.text() == choices.text() && read.size() == 50);
    EXPECT(*read.find(tuned(32)) == (Choice{2, 1, 1, 2}));
    std::remove(path.c_str());
    EXPECT_RAISES(ChoicesError, Choices::load(path), "cannot be read");
    EXPECT_RAISES(ChoicesError, choices.save(path + "/no/folder"), "cannot be written");
    EXPECT(Choices::parse(Choices().text()).size() == 0);
}

TEST(foreign_and_damaged_files_are_refused) {
    Choices choices;
    choices.set(tuned(16), Choice{1, 2, 1, 0});
    choices.set(tuned(32), Choice{3, -1, -1, -1});
    std::string const good = choices.text();
    EXPECT_RAISES(ChoicesError, Choices::parse(""), "expected 'onnx24-spmm24-choices 1'");
    EXPECT_RAISES(ChoicesError, Choices::parse("{\"a\": 1}"), "found '{");
    EXPECT_RAISES(ChoicesError, Choices::parse("onnx24-spmm24-choices 2" + good.substr(23)),
                  "expected 'onnx24-spmm24-choices 1'");
    EXPECT_RAISES(ChoicesError, Choices::parse(good + good), "");
    for (std::size_t size = 0; size < good.size(); ++size)
        EXPECT_RAISES(ChoicesError, Choices::parse(good.substr(0, size)), "");
    for (std::size_t at = 0; at < good.size(); ++at)
        for (char other : {'\0', '0', '9', ' ', '\n', 'x', '-'}) {
            if (good[at] == other) continue;
            std::string bad = good;
            bad[at] = other;
            EXPECT_RAISES(ChoicesError, Choices::parse(bad), "");
        }
    EXPECT_RAISES(ChoicesError, Choices::parse(std::string(20u << 20, 'a')), "16 MiB");
}

TEST(values_out_of_range_are_refused_though_the_checksum_is_right) {
    auto const with = [](std::string const& lines) {
        std::string text = std::string("onnx24-spmm24-choices 1\n") + lines;
        uint64_t hash = 14695981039346656037ull;
        for (unsigned char c : text) hash = (hash ^ c) * 1099511628211ull;
        char end[32];
        std::snprintf(end, sizeof end, "end %016llx\n", static_cast<unsigned long long>(hash));
        return text + end;
    };
    std::string const good = "90 1000 10 10 32 64 0 16 1 -1 -1 -1\n";
    EXPECT(Choices::parse(with(good)).size() == 1);
    EXPECT_RAISES(ChoicesError, Choices::parse(with(good + good)), "line 3: a second choice");
    EXPECT_RAISES(ChoicesError, Choices::parse(with("90 1000 10 10 32\n")), "expected 12 numbers");
    EXPECT_RAISES(ChoicesError, Choices::parse(with("90 1000 7 10 32 64 0 16 1 -1 -1 -1\n")),
                  "7 is no type");
    EXPECT_RAISES(ChoicesError, Choices::parse(with("90 1000 10 10 32 64 0 16 -5 -1 -1 -1\n")),
                  "lies outside");
    EXPECT_RAISES(ChoicesError, Choices::parse(with("90 1000 10 10 32 x4 0 16 1 -1 -1 -1\n")),
                  "expected a number");
    EXPECT_RAISES(ChoicesError,
                  Choices::parse(with("99999999999999999999 1 10 10 32 64 0 16 1 -1 -1 -1\n")),
                  "expected a number");
    EXPECT_RAISES(ChoicesError, Choices::parse(with("90 1000 10 10 032 64 0 16 1 -1 -1 -1\n")),
                  "plainly");
}

TEST(many_threads_make_each_plan_once) {
    FakeLibrary library;
    {
        Choices choices;
        choices.set(tuned(64), Choice{2, -1, -1, -1});
        PlanCache cache(library, choices, 1000);
        std::vector<std::thread> threads;
        for (int t = 0; t < 8; ++t)
            threads.emplace_back([&cache, t] {
                for (int i = 0; i < 400; ++i) {
                    auto const plan = cache.at(kProblem, 1 + (i * 37 + t * 101) % 1500);
                    if (cache.find(kProblem, plan->bucket()) != plan) std::abort();
                    cache.workspace_bytes();
                    cache.counts();
                }
            });
        for (auto& thread : threads) thread.join();
        EXPECT(cache.counts().made == cache.size());
        EXPECT(static_cast<std::size_t>(library.calls("create_plan")) == cache.size());
        EXPECT(cache.counts().hits + cache.counts().made == 8 * 400);
    }
    expect_clean(library);
}

TEST(threads_evict_what_others_use) {
    FakeLibrary library;
    {
        PlanCache cache(library, {}, 2);
        std::vector<std::thread> threads;
        for (int t = 0; t < 4; ++t)
            threads.emplace_back([&cache, t] {
                Problem problem = kProblem;
                problem.n = problem.k = 16;
                std::vector<uint16_t> w(256), x(16 * 16), y(16 * 16);
                float const alpha = 1;
                for (int i = 0; i < 100; ++i) {
                    problem.n = 16 * (1 + (i + t) % 3);
                    problem.k = 16;
                    w.resize(static_cast<std::size_t>(problem.n * 16));
                    y.resize(static_cast<std::size_t>(problem.n * 16));
                    cache.at(problem, 5)->multiply(&alpha, w.data(), x.data(), y.data(), nullptr,
                                                   nullptr);
                }
            });
        for (auto& thread : threads) thread.join();
        EXPECT(cache.size() == 2);
    }
    expect_clean(library);
}

TEST(unpacking) {
    // Places (0, 1), (1, 3), (2, 3): nibbles 4, 13, 14.
    int32_t const words[] = {4 | 13 << 4 | 14 << 8};
    int8_t const values[] = {1, 2, 3, 4, 5, 6};
    auto const dense = unpack24(values, words, 1, 12, 1);
    EXPECT((dense == std::vector<uint8_t>{1, 2, 0, 0, 0, 3, 0, 4, 0, 0, 5, 6}));
    int32_t const equal[] = {5}, unused[] = {4 | 1 << 4};
    EXPECT_RAISES(std::invalid_argument, unpack24(values, equal, 1, 4, 1), "not ascending");
    EXPECT_RAISES(std::invalid_argument, unpack24(values, unused, 1, 4, 1), "unused bits");
    EXPECT_RAISES(std::invalid_argument, unpack24(values, words, 1, 6, 1), "K = 6");
}

int main() { return testing::run_all(); }
