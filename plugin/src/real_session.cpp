// Sessions on real devices, for the plugin library; tests link a fake instead.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <map>
#include <mutex>

#include "cusparselt_library.hpp"
#include "spmm24_plugin.hpp"

namespace onnx24 {

namespace {

std::shared_ptr<Session> session_of_device() {
    static std::mutex mutex;
    // Never torn down: at exit CUDA may be gone already, and a plan can't be destroyed without it.
    static auto* const sessions = new std::map<int, std::shared_ptr<Session>>();
    std::lock_guard<std::mutex> lock(mutex);
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) throw std::runtime_error("no CUDA device");
    auto& session = (*sessions)[device];
    if (session == nullptr) {
        char const* const path = std::getenv("ONNX24_SPMM24_CHOICES");
        Choices choices = path != nullptr && *path != '\0' ? Choices::load(path) : Choices();
        session = std::make_shared<Session>(make_cusparselt(), std::move(choices));
    }
    return session;
}

struct Install {
    Install() { set_session_source(session_of_device); }
} const install;

}  // namespace

}  // namespace onnx24
