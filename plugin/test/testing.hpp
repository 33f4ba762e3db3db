// A runner in a page: TEST(name) { EXPECT(…); }, one line a failure, and the count at the end.
#pragma once

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

namespace testing {

struct Test { char const* name; void (*body)(); };
inline std::vector<Test>& tests() { static std::vector<Test> all; return all; }
inline int& complaints() { static int count = 0; return count; }
struct Add { Add(char const* name, void (*body)()) { tests().push_back({name, body}); } };

inline int run_all() {
    int failed = 0;
    for (Test const& test : tests()) {
        int const before = complaints();
        try {
            test.body();
        } catch (std::exception const& err) {
            std::printf("%s: exception: %s\n", test.name, err.what());
            ++complaints();
        }
        failed += complaints() != before;
    }
    std::printf("%zu passed, %d failed\n", tests().size() - static_cast<std::size_t>(failed), failed);
    return failed == 0 ? 0 : 1;
}

}  // namespace testing

#define TEST(name)                                            \
    static void test_##name();                                \
    static testing::Add const add_##name(#name, test_##name); \
    static void test_##name()
#define EXPECT(condition)                                                         \
    do {                                                                          \
        if (!(condition)) {                                                       \
            std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);           \
            ++testing::complaints();                                              \
        }                                                                         \
    } while (false)
#define EXPECT_RAISES(type, statement, words)                                     \
    do {                                                                          \
        std::string said = "nothing was raised";                                  \
        bool right = false;                                                       \
        try {                                                                     \
            statement;                                                            \
        } catch (type const& err) {                                               \
            said = err.what();                                                    \
            right = said.find(words) != std::string::npos;                        \
        }                                                                         \
        if (!right) {                                                             \
            std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #statement, said.c_str()); \
            ++testing::complaints();                                              \
        }                                                                         \
    } while (false)
