#include "plan_cache.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace onnx24 {

namespace {

constexpr int64_t kStep = 16;
constexpr int64_t kFine = 512;
constexpr int64_t kSteps = 8;
constexpr int64_t kMaxRows = int64_t{1} << 30;

int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

int64_t bucket_of(int64_t rows) {
    if (rows < 1 || rows > kMaxRows)
        throw std::invalid_argument(std::to_string(rows) + " rows, expected 1 to 2^30");
    if (rows <= kFine) return round_up(rows, kStep);
    int64_t octave = kFine;
    while (octave * 2 < rows) octave *= 2;
    return round_up(rows, octave / kSteps);
}

std::vector<int64_t> buckets_up_to(int64_t rows) {
    int64_t const last = bucket_of(rows);
    std::vector<int64_t> out;
    for (int64_t bucket = kStep; bucket <= last; bucket = bucket_of(bucket + 1)) {
        out.push_back(bucket);
        if (bucket == kMaxRows) break;
    }
    return out;
}

// --- one plan ---------------------------------------------------------------------------------
CompiledPlan::CompiledPlan(Library& library, PlanKey const& key) : library_(library), key_(key) {
    auto const& [weight, result, n, k, per_channel] = key.problem;
    int64_t const m = key.bucket;
    auto const ok = [&](char const* call, Status status) { check(library, call, status); };
    try {
        ok("create_structured",
           library.create_structured(&weight_, n, k, k, weight, Order::kRow));
        ok("create_dense", library.create_dense(&x_, m, k, k, weight, Order::kRow));
        ok("create_dense", library.create_dense(&y_, n, m, n, result, Order::kColumn));
        ok("create_matmul", library.create_matmul(&matmul_, weight_, x_, true, y_, weight));
        if (per_channel) ok("set_alpha_vector", library.set_alpha_vector(matmul_));
        ok("create_selection", library.create_selection(&selection_, matmul_));
        if (!key.choice.is_default())
            ok("set_choice", library.set_choice(selection_, key.choice));
        ok("create_plan", library.create_plan(&plan_, matmul_, selection_));
        ok("workspace_bytes", library.workspace_bytes(plan_, &workspace_));
    } catch (...) {
        destroy();
        throw;
    }
}

CompiledPlan::~CompiledPlan() { destroy(); }

void CompiledPlan::destroy() {
    if (plan_ != nullptr) library_.destroy_plan(plan_);
    if (selection_ != nullptr) library_.destroy_selection(selection_);
    if (matmul_ != nullptr) library_.destroy_matmul(matmul_);
    for (Matrix* matrix : {y_, x_, weight_})
        if (matrix != nullptr) library_.destroy_matrix(matrix);
}

void CompiledPlan::multiply(float const* alpha, void const* compressed, void const* x, void* y,
                            void* workspace, void* stream) const {
    check(library_, "multiply",
          library_.multiply(plan_, alpha, compressed, x, y, workspace, stream));
}

Choice CompiledPlan::search(float const* alpha, void const* compressed, void const* x, void* y,
                            void* workspace, void* stream) {
    check(library_, "search", library_.search(plan_, alpha, compressed, x, y, workspace, stream));
    Choice found;
    check(library_, "get_choice", library_.get_choice(selection_, &found));
    return found;
}

// --- the cache --------------------------------------------------------------------------------
PlanCache::PlanCache(Library& library, Choices choices, std::size_t capacity)
    : library_(library), capacity_(std::max<std::size_t>(capacity, 1)), choices_(std::move(choices)) {}

PlanKey PlanCache::key_for(Problem const& problem, int64_t rows) const {
    PlanKey key;
    key.device = library_.device();
    key.sm = library_.sm();
    key.library = library_.version();
    key.problem = problem;
    key.bucket = bucket_of(rows);
    if (auto const* choice = choices_.find({key.sm, key.library, problem, key.bucket}))
        key.choice = *choice;
    return key;
}

PlanCache::PlanPtr PlanCache::at(Problem const& problem, int64_t rows, std::size_t limit) {
    std::lock_guard<std::mutex> lock(mutex_);
    PlanKey key = key_for(problem, rows);
    if (!key.choice.is_default()) {
        try {
            if (auto plan = get(key, limit)) return plan;
        } catch (LibraryError const&) {
            // Searched by a build of the library that says it is this one and is not.
        }
        ++counts_.fallbacks;
        key.choice = Choice{};
    }
    if (auto plan = get(key, limit)) return plan;
    throw std::runtime_error("the plan for " + std::to_string(key.bucket) +
                             " rows needs more workspace than the " + std::to_string(limit) +
                             " bytes there are");
}

PlanCache::PlanPtr PlanCache::get(PlanKey const& key, std::size_t limit) {
    auto const it = plans_.find(key);
    PlanPtr plan;
    if (it != plans_.end()) {
        ++counts_.hits;
        recent_.splice(recent_.begin(), recent_, it->second.place);
        plan = it->second.plan;
    } else {
        plan = std::make_shared<CompiledPlan>(library_, key);
        ++counts_.made;
        remember(plan);
    }
    if (plan->workspace_bytes() > limit) return nullptr;
    workspace_ = std::max(workspace_, plan->workspace_bytes());
    return plan;
}

void PlanCache::remember(PlanPtr const& plan) {
    recent_.push_front(plan->key());
    plans_[plan->key()] = Entry{plan, recent_.begin()};
    while (plans_.size() > capacity_) {
        plans_.erase(recent_.back());
        recent_.pop_back();
        ++counts_.evicted;
    }
}

PlanCache::PlanPtr PlanCache::find(Problem const& problem, int64_t rows) const {
    std::lock_guard<std::mutex> lock(mutex_);
    PlanKey key = key_for(problem, rows);
    auto it = plans_.find(key);
    if (it == plans_.end() && !key.choice.is_default()) {
        key.choice = Choice{};
        it = plans_.find(key);
    }
    return it == plans_.end() ? nullptr : it->second.plan;
}

std::size_t PlanCache::workspace_bytes() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return workspace_;
}

Choice PlanCache::search(Problem const& problem, int64_t rows, float const* alpha,
                         void const* compressed, void const* x, void* y, void* workspace,
                         void* stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    PlanKey key = key_for(problem, rows);
    key.choice = Choice{};
    // A plan of its own: what the search leaves in it belongs to no key of the cache.
    CompiledPlan plan(library_, key);
    Choice const found = plan.search(alpha, compressed, x, y, workspace, stream);
    choices_.set({key.sm, key.library, problem, key.bucket}, found);
    return found;
}

Choices PlanCache::choices() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return choices_;
}

std::size_t PlanCache::size() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return plans_.size();
}

CacheCounts PlanCache::counts() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return counts_;
}

}  // namespace onnx24
