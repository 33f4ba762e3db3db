// The real library: cuSPARSELt 0.8.1 or later, and the CUDA runtime.
#pragma once

#include <memory>

#include "library.hpp"

namespace onnx24 {

// For the current device. Raises: LibraryError; std::runtime_error for a cuSPARSELt before 0.8.1
// (0.8.0 regressed, and AlgSelectionDestroy is missing before it).
std::unique_ptr<Library> make_cusparselt();

}  // namespace onnx24
