// Plans of cuSPARSELt's matmul, kept from one shape to the next.
//
// A plan holds for one number of rows and takes milliseconds to make, so a plan a call, or a plan a
// row count, costs more than sparsity gains. Rows are therefore rounded up to buckets (`bucket_of`),
// plans are made when a shape changes and never while a product is enqueued, and all of them use one
// workspace of the largest size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "choices.hpp"
#include "library.hpp"

namespace onnx24 {

// Rows rounded up: to a multiple of 16 up to 512, from there in eight steps an octave (576, 640, …,
// 1024, 1152, …), so that at most an eighth of the work is padding. Raises: std::invalid_argument
// for rows < 1 or above 2^30.
int64_t bucket_of(int64_t rows);
// All buckets up to that of `rows`, ascending.
std::vector<int64_t> buckets_up_to(int64_t rows);

// Everything that decides which plan it is.
struct PlanKey {
    int device = 0;
    int sm = 0;
    int library = 0;
    Problem problem;  // types, N, K, layout, epilogue
    int64_t bucket = 0;
    Choice choice;  // algorithm, split-k

    auto tie() const {
        return std::make_tuple(device, sm, library, static_cast<int32_t>(problem.weight),
                               static_cast<int32_t>(problem.result), problem.n, problem.k,
                               problem.per_channel, bucket, choice.algorithm, choice.split_k,
                               choice.split_k_mode, choice.split_k_buffers);
    }
    bool operator<(PlanKey const& other) const { return tie() < other.tie(); }
};

// A plan with the descriptors that it was made of; all of them go together, in reverse order.
class CompiledPlan {
public:
    // Raises: LibraryError; nothing is left behind.
    CompiledPlan(Library& library, PlanKey const& key);
    ~CompiledPlan();
    CompiledPlan(CompiledPlan const&) = delete;
    CompiledPlan& operator=(CompiledPlan const&) = delete;

    PlanKey const& key() const { return key_; }
    int64_t bucket() const { return key_.bucket; }
    std::size_t workspace_bytes() const { return workspace_; }
    Matrix* structured() const { return weight_; }

    // y [bucket, N] = alpha · x [bucket, K] · W; see Library::multiply. x and y hold whole buckets.
    // Safe from several threads, on streams and workspaces of their own. Raises: LibraryError.
    void multiply(float const* alpha, void const* compressed, void const* x, void* y,
                  void* workspace, void* stream) const;

private:
    friend class PlanCache;
    Choice search(float const* alpha, void const* compressed, void const* x, void* y,
                  void* workspace, void* stream);
    void destroy();

    Library& library_;
    PlanKey key_;
    Matrix* weight_ = nullptr;
    Matrix* x_ = nullptr;
    Matrix* y_ = nullptr;
    Matmul* matmul_ = nullptr;
    Selection* selection_ = nullptr;
    Plan* plan_ = nullptr;
    std::size_t workspace_ = 0;
};

struct CacheCounts {
    uint64_t hits = 0;
    uint64_t made = 0;
    uint64_t evicted = 0;
    uint64_t fallbacks = 0;  // a searched algorithm did not work, the library's was taken
};

// Thread-safe. The least recently used plan goes when there are more than `capacity`; whoever holds
// it keeps it until done. The library must outlive the cache and all plans.
class PlanCache {
public:
    using PlanPtr = std::shared_ptr<CompiledPlan const>;

    explicit PlanCache(Library& library, Choices choices = {}, std::size_t capacity = 512);

    // The plan for so many rows, made where there is none: call it when shapes change. A searched
    // algorithm that the library refuses, or whose workspace is above `workspace_limit`, is
    // replaced by the library's own choice. Raises: LibraryError, std::invalid_argument;
    // std::runtime_error where that one needs more workspace, too.
    PlanPtr at(Problem const& problem, int64_t rows,
               std::size_t workspace_limit = static_cast<std::size_t>(-1));
    // The plan if it is there; never makes one. For what runs at enqueue time.
    PlanPtr find(Problem const& problem, int64_t rows) const;

    // Largest workspace [bytes] of any plan made so far, evicted ones too.
    std::size_t workspace_bytes() const;

    // Time the algorithms for the bucket of `rows` on buffers that hold it, and use the fastest from
    // now on. Meant for an offline tool. Raises: LibraryError.
    Choice search(Problem const& problem, int64_t rows, float const* alpha, void const* compressed,
                  void const* x, void* y, void* workspace, void* stream);
    Choices choices() const;

    std::size_t size() const;
    CacheCounts counts() const;

private:
    struct Entry {
        PlanPtr plan;
        std::list<PlanKey>::iterator place;
    };
    PlanKey key_for(Problem const& problem, int64_t rows) const;  // guarded by the caller
    PlanPtr get(PlanKey const& key, std::size_t limit);           // guarded by the caller
    void remember(PlanPtr const& plan);

    Library& library_;
    std::size_t const capacity_;
    mutable std::mutex mutex_;
    Choices choices_;
    std::map<PlanKey, Entry> plans_;
    mutable std::list<PlanKey> recent_;  // the most recently used first
    std::size_t workspace_ = 0;
    CacheCounts counts_;
};

}  // namespace onnx24
