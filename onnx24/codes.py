"""The table of diagnostic codes; `onnx24 explain CODE` and docs/codes.md print it.

Ranges: 0xx input, 1xx pruning, 2xx quantization and precision, 3xx rewrites, 4xx target,
5xx backend, 6xx policy, 8xx verifier, 9xx our own fault. A code is never reused.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """`severity` is the default ("note", "warning", "error"); `hint` the usual next step."""

    id: str
    severity: str
    title: str
    explanation: str
    hint: str = ""


_TABLE = (
    # --- 0xx input -------------------------------------------------------------------------
    Code(
        "O24-001",
        "error",
        "file cannot be read",
        "The path does not exist, is a directory, or may not be read.",
        "check the path and its permissions",
    ),
    Code(
        "O24-002",
        "error",
        "not an ONNX model",
        "The bytes are not a serialized onnx.ModelProto: another format, or garbage.",
        "pass the .onnx file itself; unpack archives first",
    ),
    Code(
        "O24-003",
        "error",
        "truncated model",
        "The file ends in the middle of a field: a cut download or an interrupted write.",
        "fetch or export the model again",
    ),
    Code(
        "O24-004",
        "error",
        "no graph",
        "The model holds no graph, or a graph with no outputs, so there is nothing to compile.",
        "export the model again",
    ),
    Code(
        "O24-005",
        "error",
        "external data missing",
        "An initializer keeps its values in a file that is not there.",
        "put the data file next to the model, under the name that the model gives",
    ),
    Code(
        "O24-006",
        "error",
        "external data outside the model's folder",
        "An external path is absolute, climbs out with '..', or is a symlink that leads out. "
        "A model must not make the compiler read arbitrary files.",
        "move the data file into the model's folder and save the model with a relative path",
    ),
    Code(
        "O24-007",
        "error",
        "external data out of bounds",
        "Offset and length of an external tensor do not lie within its file.",
        "fetch or export model and data again, together",
    ),
    Code(
        "O24-008",
        "error",
        "weights are not finite",
        "An initializer that feeds a matrix product holds NaN or Inf; every result would be "
        "meaningless.",
        "repair the checkpoint, or exclude the layer",
    ),
    Code(
        "O24-009",
        "error",
        "opset too old",
        "The model's ai.onnx opset is below the oldest that is supported.",
        "export with a newer opset",
    ),
    Code(
        "O24-010",
        "error",
        "opset too new",
        "The model's ai.onnx opset is newer than the installed onnx package knows.",
        "upgrade the onnx package, or export with an older opset",
    ),
    Code(
        "O24-011",
        "error",
        "operator without a definition",
        "A node's operator is in no known domain and is no function of the model, so its "
        "meaning is unknown.",
        "register the operator, or export without it",
    ),
    Code(
        "O24-012",
        "error",
        "graph has a cycle",
        "Some nodes need their own results.",
        "export the model again",
    ),
    Code(
        "O24-013",
        "error",
        "duplicated name",
        "Two values of one scope have the same name.",
        "export the model again",
    ),
    Code(
        "O24-014",
        "error",
        "initializer of the wrong size",
        "The bytes of an initializer do not fill its shape and dtype.",
        "export the model again",
    ),
    Code(
        "O24-015",
        "error",
        "invalid model",
        "onnx.checker refuses the model.",
        "export the model again",
    ),
    Code(
        "O24-016",
        "error",
        "ONNX Runtime refuses the model",
        "The reference execution cannot load or run the model, so no result could be verified.",
        "see the message; operators of other runtimes cannot be compiled here",
    ),
    Code(
        "O24-017",
        "error",
        "input limit exceeded",
        "The file is nested deeper, or holds more, than any honest model does.",
        "check where the file comes from",
    ),
    Code(
        "O24-019",
        "error",
        "check stopped",
        "Reading the file took more time or memory than the check allows, or ended the process "
        "that read it. An honest model does neither; a hostile one may.",
        "check where the file comes from; raise [limits] in the policy for a file you trust",
    ),
    Code(
        "O24-018",
        "warning",
        "initializer shadows a graph input",
        "An initializer is also a graph input: a caller may override it at run time, so it is "
        "no constant. It is left alone.",
        "export with keep_initializers_as_inputs=False",
    ),
    Code(
        "O24-020",
        "error",
        "pipeline syntax",
        "The pipeline text does not parse.",
        "see `onnx24 passes` for the syntax",
    ),
    Code("O24-021", "error", "unknown pass", "No pass has this name.", "see `onnx24 passes`"),
    Code(
        "O24-022",
        "error",
        "unknown option",
        "The pass has no such option.",
        "see `onnx24 PASS --help`",
    ),
    Code(
        "O24-023",
        "error",
        "bad option value",
        "The value does not fit the option's type.",
        "see `onnx24 PASS --help`",
    ),
    Code("O24-024", "error", "unknown preset", "No preset has this name.", "see `onnx24 passes`"),
    Code("O24-025", "error", "unknown target", "No target has this name.", "see `onnx24 targets`"),
    Code(
        "O24-026",
        "error",
        "pass order",
        "The ordering constraints of the passes contradict.",
        "reorder the pipeline",
    ),
    Code("O24-027", "error", "unknown code", "No diagnostic has this code.", "see docs/codes.md"),
    Code(
        "O24-028",
        "error",
        "plug-in pass is broken",
        "A third-party pass could not be loaded, or its name is already taken.",
        "fix or uninstall the plug-in package",
    ),
    Code(
        "O24-030",
        "error",
        "data cannot be read",
        "Calibration or test data is not an .npz, a folder of .npz or images, or ONNX test data; "
        "or a file of it is broken.",
        "see `onnx24 compile --help` for the forms of DATA",
    ),
    Code(
        "O24-031",
        "error",
        "data has the wrong names",
        "The arrays' names are not the model's input names.",
        "name each array after the model's input",
    ),
    Code(
        "O24-032",
        "error",
        "data has the wrong shape",
        "An array does not fit the model's input shape.",
        "stack samples along the first axis",
    ),
    Code(
        "O24-033",
        "error",
        "data has the wrong dtype",
        "An array's dtype is not the model's input dtype.",
        "convert the array before saving",
    ),
    Code(
        "O24-034",
        "warning",
        "random data",
        "Random numbers stand in for real data: numbers measured on them say nothing about the "
        "accuracy on real inputs.",
        "pass real samples",
    ),
    Code(
        "O24-035",
        "error",
        "calibration data needed",
        "The pipeline needs real activations.",
        "pass --calib DATA",
    ),
    Code(
        "O24-036",
        "error",
        "dynamic dimension without a size",
        "Nothing says how large a dynamic dimension of an input is, and no size was found at which "
        "ONNX Runtime runs the model.",
        "pass --shapes NAME:MIN:OPT:MAX, or data of a concrete shape",
    ),
    Code(
        "O24-037",
        "warning",
        "output not compared in full",
        "In some runs the two models' outputs have other shapes, as behind NonMaxSuppression, or "
        "one holds NaN. Nothing is known of those runs, so no limit on that output is met; for "
        "top1 they count as changed.",
        "name the output to judge, or a value before the operator that selects: sqnr=20@NAME",
    ),
    Code(
        "O24-038",
        "note",
        "16-bit arithmetic in the comparison",
        "ONNX Runtime's CPU provider has no 16-bit arithmetic. The comparison computes each "
        "float16 and bfloat16 node in float32 and rounds its result, as a GPU does that sums in "
        "float32; the order of sums inside a node is another.",
    ),
    Code(
        "O24-039",
        "error",
        "no such value",
        "A limit, a budget or a comparison names a value that the model's main graph does not "
        "have.",
        "`onnx24 compare A B --layers` lists the values that both models compute",
    ),
    Code(
        "O24-040",
        "error",
        "output cannot be written",
        "The folder is missing or read-only, or the disk is full. Nothing was left behind.",
        "choose another output path",
    ),
    Code(
        "O24-041",
        "error",
        "output would overwrite the input",
        "The output path, or its data file, is the input's. The input is never modified.",
        "choose another output path",
    ),
    Code(
        "O24-042",
        "error",
        "standard streams cannot carry external data",
        "A model with external data needs a folder.",
        "use paths instead of '-'",
    ),
    Code(
        "O24-073",
        "error",
        "an input changed while it was read",
        "The model's file, or one of its data files, is shorter than when it was opened. Files are "
        "read piece by piece, and must stay as they are until the command ends.",
        "run it again when nothing writes the file",
    ),
    Code(
        "O24-065",
        "error",
        "no samples",
        "What was given for calibration or comparison is of a kind that no samples are read from.",
        "pass a path, a dict of arrays, batches, a DataLoader, a table, or a function that gives "
        "an iterator",
    ),
    Code(
        "O24-066",
        "error",
        "too many samples to hold",
        "What can be read only once, such as a generator, is kept in memory, up to a bound.",
        "pass a function that makes a fresh iterator, or write the samples to a folder of .npz",
    ),
    Code(
        "O24-067",
        "error",
        "samples change from pass to pass",
        "A function is called for each pass over the data, and must give the same samples in the "
        "same order: which of them are held out is counted.",
        "seed it, and do not shuffle anew",
    ),
    Code("O24-043", "error", "wrong usage", "The command line contradicts itself.", "see --help"),
    Code(
        "O24-068",
        "error",
        "image input not told",
        "Images are fed, and neither the model nor the call says which dimension holds channels, "
        "or how high and wide an image is.",
    ),
    Code(
        "O24-069",
        "error",
        "pillow is not installed",
        "Images are decoded by pillow, which is an optional dependency.",
        "pip install 'onnx24[images]'",
    ),
    Code(
        "O24-070",
        "warning",
        "preprocessing assumed",
        "Images were scaled to values between 0 and 1, without mean and standard deviation; a "
        "model that was trained with others is calibrated, and judged, on inputs that it never "
        "sees.",
        "pass --image-mean and --image-std, of values in 0 to 1; 0 and 1 where that is right",
    ),
    Code(
        "O24-071",
        "error",
        "matplotlib is not installed",
        "A front is drawn as a picture by matplotlib, which nothing else here needs.",
        "pip install matplotlib, or name a file that ends in .html",
    ),
    Code(
        "O24-044",
        "error",
        "policy cannot be used",
        "The policy file cannot be read, is no TOML, or holds a key or a value that no rule knows.",
        "see `onnx24 check --help` for the keys",
    ),
    Code(
        "O24-045",
        "error",
        "nothing to check",
        "No model is where the command line points: an empty folder, a pattern that matches "
        "nothing, or an OCI layout without an ONNX blob.",
        "name a model, a folder that holds some, or a pattern such as 'models/**/*.onnx'",
    ),
    Code(
        "O24-046",
        "error",
        "baseline cannot be used",
        "The file of accepted findings cannot be read or is not one that `check` wrote.",
        "write it anew with --write-baseline",
    ),
    Code(
        "O24-047",
        "error",
        "model registry cannot be used",
        "The registry's package is not installed, the server does not answer, or the model "
        "version is not there.",
        "install onnx24[mlflow], and check --tracking-uri and the name",
    ),
    Code(
        "O24-048",
        "error",
        "measurement file cannot be used",
        "A builder's log, layer information, profile or times file is missing or of another form.",
        "pass the files that trtexec's --exportLayerInfo, --exportProfile and --exportTimes wrote",
    ),
    Code(
        "O24-049",
        "warning",
        "function not inlined",
        "A local function stays: its operators mean something else in the model's opset, or "
        "runtimes have operators of its domain and never call it.",
        "export with the function's opset, or give the function a domain of its own",
    ),
    Code(
        "O24-050",
        "error",
        "name used twice",
        "An initializer of a branch or loop body has the name of another value outside. ONNX does "
        "not allow it, and which value is read is up to the runtime.",
        "rename the initializer in the body",
    ),
    Code(
        "O24-053",
        "warning",
        "size of a dynamic dimension chosen",
        "Nothing says how large a dynamic dimension is. It takes the size of the same name "
        "elsewhere, 1 where it is the first (the batch), else the smallest at which ONNX Runtime "
        "runs the model.",
        "pass --shapes NAME:MIN:OPT:MAX, or data of a concrete shape",
    ),
    Code(
        "O24-054",
        "warning",
        "judged by samples that were fitted",
        "The model was pruned, calibrated or trained on these samples, and none was held out of "
        "them: there were fewer than 16, or one run takes them all. What they say is too good.",
        "pass other data, or calibrate on 16 samples or more: every eighth is held out",
    ),
    Code(
        "O24-055",
        "error",
        "no kernels for the opset",
        "The installed ONNX Runtime has no QuantizeLinear or DequantizeLinear of the model's "
        "opset, so that the quantized model could not be run and compared.",
        "export with an older opset, or install a newer ONNX Runtime",
    ),
    Code(
        "O24-056",
        "error",
        "values became NaN or infinite",
        "The compiled model gives NaN or an infinity where the original is finite, as after an "
        "overflow in float16. Such a model is not written, whatever limits were given; with random "
        "data it is a warning.",
        "leave the layers in float32 that leave the 16-bit range, or exclude them",
    ),
    # --- 1xx pruning -----------------------------------------------------------------------
    Code(
        "O24-057",
        "note",
        "weight computed in the graph",
        "Nodes compute an operand of a product from constants alone: no tensor holds it, so it is "
        "not 2:4. It counts as not covered.",
        "run canonicalize, which computes such values once",
    ),
    Code(
        "O24-058",
        "warning",
        "error larger than the output",
        "An output differs from the original's by more than the original's own size (a relative "
        "error above 1, an SQNR below 0 dB): zeros would be nearer. Nothing useful is left of it.",
        "look at the samples, an outlier in the calibration data among them; prune or quantize "
        "fewer layers; --max-drop makes it an error",
    ),
    Code(
        "O24-100",
        "note",
        "pruned to 2:4",
        "Two of every four values along the reduction axis are zero now.",
    ),
    Code(
        "O24-101",
        "note",
        "eligible for 2:4",
        "The weight could be stored in the compressed 2:4 form. Eligible does not mean that "
        "TensorRT will choose a sparse kernel.",
    ),
    Code("O24-102", "note", "already 2:4", "The weight already satisfies the pattern."),
    Code(
        "O24-103",
        "note",
        "weight copied for its readers",
        "Readers that want different axes, or dense values, got a copy each; the copy costs its "
        "size in the file and in memory.",
    ),
    Code(
        "O24-110",
        "note",
        "not a matrix product's weight",
        "No consumer is a Conv, Gemm, MatMul or plain Einsum product.",
    ),
    Code(
        "O24-111",
        "note",
        "grouped convolution",
        "TensorRT does not consider grouped convolutions for sparse kernels "
        "(NVIDIA/TensorRT issue 4054).",
    ),
    Code(
        "O24-112",
        "note",
        "depthwise convolution",
        "One input channel per group leaves nothing to choose from.",
    ),
    Code(
        "O24-113",
        "note",
        "reduction size is not a multiple of 4",
        "Groups of four must tile the reduction axis exactly.",
        "pad K or exclude the layer",
    ),
    Code(
        "O24-114",
        "note",
        "too small to gain",
        "The target's row says that kernels of this size do not profit.",
    ),
    Code(
        "O24-115",
        "warning",
        "consumers want different axes",
        "The weight is shared and its consumers reduce over different axes; 2:4 along one "
        "is not 2:4 along the other.",
        "prune24{conflicting=split} gives each axis a copy",
    ),
    Code(
        "O24-116",
        "warning",
        "also read by something else",
        "A consumer that is not a matrix product reads the values too (a tied embedding's "
        "Gather, for instance); pruning would change its result.",
        "prune24{tied=split} prunes a copy for the products, tied=prune prunes for all readers",
    ),
    Code("O24-117", "note", "not constant", "Both operands are computed at run time."),
    Code(
        "O24-118",
        "note",
        "dtype not supported",
        "Values of this dtype cannot be pruned, or the target has no sparse kernels for it.",
    ),
    Code("O24-119", "note", "recurrent layer", "TensorRT runs LSTM, GRU and RNN weights dense."),
    Code("O24-120", "note", "excluded", "An include or exclude option leaves this weight out."),
    Code(
        "O24-121",
        "note",
        "path not traced",
        "An operator between weight and consumer rearranges or computes values in a way that "
        "is not followed.",
    ),
    Code(
        "O24-122",
        "note",
        "transposed convolution",
        "Nothing confirms sparse kernels for ConvTranspose.",
    ),
    Code(
        "O24-123",
        "note",
        "operator not eligible on the target",
        "The target's row says that this operator gets no sparse kernels there.",
    ),
    Code(
        "O24-124",
        "note",
        "quantization mixes the groups",
        "The scale changes within groups of four, or the zero point is not 0, so that the stored "
        "integers cannot be compared, or a stored zero is no zero for the consumer.",
        "prune before quantizing",
    ),
    Code(
        "O24-125",
        "warning",
        "pruned by magnitude only",
        "The survivors were chosen by their size alone, not by their effect on the outputs, and "
        "the weights that stay were not adjusted. The accuracy loss is often large.",
        "measure the task's accuracy before deploying; exclude the layers that suffer most",
    ),
    Code(
        "O24-126",
        "note",
        "graph input or output",
        "The value is visible outside the graph, so it must keep its values.",
    ),
    Code(
        "O24-127",
        "note",
        "target has no sparse tensor cores",
        "The target's compute capability has no 2:4 support.",
    ),
    Code(
        "O24-128",
        "warning",
        "stale 2:4 record dropped",
        "The input's metadata record a weight as 2:4 that the model does not have: another tool "
        "renamed or removed it.",
    ),
    Code(
        "O24-129",
        "note",
        "weight of an operator that is not judged",
        "An integer, fused, attention or custom operator multiplies by it (QLinearConv, "
        "MatMulInteger, com.microsoft.FusedMatMul, …). TensorRT's parser has no such layer with "
        "sparse kernels, or nobody knows what the operator computes.",
        "export plain Conv, Gemm and MatMul, with QuantizeLinear and DequantizeLinear for INT8",
    ),
    Code(
        "O24-131",
        "warning",
        "fewer calibration rows than inputs",
        "A layer of K inputs saw fewer than K rows (samples, tokens or positions), so that its "
        "values are fitted to those rows. The damping was chosen on held-back samples.",
        "give more samples, or augment= for images; 16 rows for each input are enough",
    ),
    Code(
        "O24-132",
        "warning",
        "fell back to magnitude",
        "On held-back samples the outputs of the solved weights erred more (relative L2 error "
        "against the dense model's) than with those that magnitude keeps, so magnitude's were "
        "taken.",
        "give more samples, or samples that resemble those the model will meet",
    ),
    Code(
        "O24-133",
        "warning",
        "model cannot be run in pieces",
        "Layers are solved on the values between them, in the dense and in the compressed model. A "
        "value that is no tensor stands between two layers, or a node draws random numbers, so "
        "that magnitude decided alone; with a budget, the weights stay dense.",
    ),
    Code(
        "O24-134",
        "note",
        "dense within the budget",
        "The layer was left dense: without it the outputs' error would exceed the budget.",
        "raise budget=, or recover the accuracy by training",
    ),
    Code(
        "O24-135",
        "warning",
        "result not judged",
        "There are too few samples to hold any back, and samples that were fitted to say nothing "
        "about others. Unless a method was named, magnitude decided.",
        "give at least two runs of samples; 500 and more are better",
    ),
    Code(
        "O24-136",
        "warning",
        "activations are not finite",
        "Rows of a layer's input hold NaN or infinity for the calibration samples, in the dense or "
        "in the compressed model. They were left out; a layer all of whose rows do is pruned by "
        "magnitude.",
        "look for the sample or the operator (Log, Div, Sqrt, an FP16 overflow) that makes them",
    ),
    Code(
        "O24-137",
        "warning",
        "dense values not kept",
        "The work dir keeps the values that weights had before they were pruned, up to 4 GiB in "
        "all, of weights that fit four times into the memory allowed. `gate` can't give the others "
        "back from there.",
        "empty the folder `dense` of the work dir, raise --memory, or give `gate` --dense as well",
    ),
    Code(
        "O24-140",
        "note",
        "channels permuted",
        "The channels stand in an order in which 2:4 pruning takes less away. Every constant that "
        "has them was permuted alike, so the outputs are the same but for the rounding of sums.",
    ),
    Code(
        "O24-141",
        "note",
        "channels are visible outside",
        "The channels belong to an input or output of the graph, or of a nested body, whose order "
        "must stay.",
    ),
    Code(
        "O24-142",
        "note",
        "order of channels matters",
        "A node that has the channels among its operands depends on their order, or is not known "
        "to be independent of it.",
    ),
    Code(
        "O24-143",
        "note",
        "a weight along the channels is 2:4",
        "A permutation would scatter the zeros of a weight that is 2:4 already.",
        "put permute24 before prune24",
    ),
    Code(
        "O24-144",
        "note",
        "a permutation gains nothing",
        "No order was found in which pruning takes enough less away.",
        "lower min-gain",
    ),
    Code(
        "O24-145",
        "note",
        "channels left out",
        "An include or exclude option, or the limit of sites, leaves the channels as they are.",
    ),
    Code("O24-146", "note", "permutation in short", "How many groups of channels were permuted."),
    Code(
        "O24-150",
        "error",
        "operator cannot be trained through",
        "The model is trained as a torch module; this node's operator, or the variant of it, has "
        "no implementation there.",
        "leave the part of the graph that holds it out of what is recovered",
    ),
    Code(
        "O24-151",
        "error",
        "nothing to recover",
        "The model is not quantized, and no weight is 2:4 in a form that can be trained: none was "
        "pruned, or something else than DequantizeLinear reads its integers.",
        "run prune24 first, and recover before spmm-plugin packs the weights",
    ),
    Code(
        "O24-152",
        "error",
        "node fails in torch",
        "A node of the torch module refuses these values.",
    ),
    Code(
        "O24-153",
        "warning",
        "training did not help",
        "The divergence on held-out samples never fell below that of the start, or became NaN; the "
        "weights are those of the start.",
        "give more data, fewer steps or a smaller --learning-rate",
    ),
    Code(
        "O24-154",
        "note",
        "recovered",
        "The weights that survived pruning were trained to give the dense model's outputs.",
    ),
    Code(
        "O24-155",
        "error",
        "torch is not installed",
        "Training runs in torch, which is an optional dependency.",
        "pip install 'onnx24[train]'",
    ),
    Code(
        "O24-156",
        "error",
        "teacher does not fit",
        "The dense model lacks an output of the model, or a weight that training starts from.",
        "pass the model that MODEL was made from as --teacher",
    ),
    Code(
        "O24-157",
        "error",
        "torch computes something else",
        "The torch module's outputs are not those of ONNX Runtime, so that training it would say "
        "nothing about the model.",
        "please report it with the model",
    ),
    Code(
        "O24-158",
        "warning",
        "trained without quantizers",
        "sparse-qat found no quantizers in the model, and qdq refused every layer of it, so that "
        "training was that of basic.",
        "run qdq by itself to see why",
    ),
    Code(
        "O24-159",
        "error",
        "another process is gone",
        "Several processes train one model, and one of them ended, does not answer, or was given "
        "other inputs; the others can't go on without it.",
        "its own output says why it ended; the same command goes on from the last checkpoint of "
        "--work-dir",
    ),
    Code(
        "O24-165",
        "note",
        "domain imported twice",
        "The model imported two versions of one domain, of which readers take another one each; "
        "ONNX Runtime and onnx.checker take the last, and that one stays.",
    ),
    # --- 2xx quantization and precision ----------------------------------------------------
    Code("O24-200", "note", "quantized", "The layer computes on INT8 inputs and weights."),
    Code(
        "O24-210",
        "note",
        "matrix-vector product",
        "M or N is 1: memory-bound, not worth quantizing (Model-Optimizer's rule).",
    ),
    Code(
        "O24-211",
        "note",
        "K or N below 16",
        "Too small to gain from INT8 tensor cores (Model-Optimizer's rule).",
    ),
    Code(
        "O24-212",
        "note",
        "fewer than 16 channels",
        "Too few channels to gain from INT8. Model-Optimizer's rule has exceptions: first layers "
        "with square kernels, depthwise 3x3 kernels, and few input channels with 32 or more out.",
    ),
    Code("O24-213", "note", "no constant weight", "Only layers with constant weights are taken."),
    Code("O24-214", "note", "already quantized", "The layer already stands behind Q/DQ."),
    Code(
        "O24-215",
        "warning",
        "activation never varies",
        "The tensor was zero on every calibration sample, so no scale can be derived.",
    ),
    Code("O24-216", "note", "dtype not quantizable", "Only floating-point layers are quantized."),
    Code("O24-218", "note", "excluded", "An option leaves this layer out."),
    Code(
        "O24-219",
        "warning",
        "activation not observed",
        "The tensor cannot be observed (it lies in a subgraph that calibration does not reach).",
    ),
    Code(
        "O24-220",
        "warning",
        "activation overflowed",
        "NaN or Inf appeared in the tensor during calibration; the layer stays in float.",
    ),
    Code(
        "O24-221",
        "warning",
        "target has no INT8",
        "The target's row lists no INT8 kernels for this TensorRT major.",
    ),
    Code(
        "O24-222",
        "warning",
        "nothing was quantized",
        "Every layer was refused, so the result is no INT8 model, whatever the preset is called.",
        "see the report's refusals",
    ),
    Code(
        "O24-223",
        "error",
        "cache of ranges does not fit",
        "The file of activation ranges cannot be read, or was made with another model, other "
        "samples or other options.",
        "delete the file to have it made anew",
    ),
    Code(
        "O24-224",
        "warning",
        "too sensitive",
        "The layer's output would be noisier than min-sqnr allows; the layer stays in float.",
    ),
    Code(
        "O24-225",
        "note",
        "product of activations quantized",
        "Both operands of a MatMul of two activations are INT8.",
    ),
    Code(
        "O24-226",
        "note",
        "Q/DQ repaired",
        "The nodes say the same in a form that TensorRT takes: UINT8 as INT8 with the zero point "
        "moved by 128, a bias as a float, a scale as a scalar. The outputs are the same.",
    ),
    Code(
        "O24-227",
        "warning",
        "asymmetric quantization made symmetric",
        "The zero point is 0 now and the step wide enough for the whole range, so that values are "
        "rounded otherwise than before, by at most half of each step.",
        "compare the outputs; quantizing the float model anew keeps more bits",
    ),
    Code(
        "O24-228",
        "warning",
        "zero point is implied",
        "Without a zero point QuantizeLinear makes UINT8, whatever the reader takes it for.",
        "write a zero point of 0 in the quantized type (INT8, INT4, FP8); `lint --fix` does",
    ),
    Code(
        "O24-230",
        "note",
        "quantized weight folded",
        "QuantizeLinear was applied at compile time; the initializer is INT8, FP8 or INT4 now.",
    ),
    Code(
        "O24-231",
        "note",
        "weight kept in float behind Q/DQ",
        "The target's TensorRT major does not take int8 initializers, or something else than "
        "DequantizeLinear reads the integers, or they are one number of rank 0: TensorRT refuses "
        "such constants.",
    ),
    Code("O24-232", "note", "redundant Q/DQ removed", "Merged, cancelled or unused Q/DQ nodes."),
    Code(
        "O24-233", "note", "quantized to FP8", "Activation and weight of the layer are FP8 (E4M3)."
    ),
    Code(
        "O24-234",
        "note",
        "weight quantized to INT4",
        "The weight is INT4 by blocks along K, behind DequantizeLinear; the layer computes in "
        "float.",
    ),
    Code(
        "O24-235",
        "warning",
        "format not available",
        "The target or the model's opset has no such quantized type.",
        "FP8 needs sm89 or newer and opset 19, INT4 TensorRT 10 and opset 21; "
        "`onnx24 upgrade-opset`",
    ),
    Code(
        "O24-236",
        "note",
        "no form for INT4",
        "INT4 is for matrices that MatMul or Gemm reads as they are stored, with K a multiple of "
        "128.",
    ),
    Code(
        "O24-237",
        "warning",
        "left in float for the outputs",
        "With this layer quantized, too, the outputs would be further from the float model's than "
        "budget or min-agreement allow; measured on calibration samples.",
        "lower min-agreement=, raise budget=, or recover the accuracy by training",
    ),
    Code("O24-240", "note", "cast to 16 bit", "The tensor is stored in 16 bit now."),
    Code("O24-241", "note", "kept in float32", "The operator loses precision or range in 16 bit."),
    Code(
        "O24-242",
        "warning",
        "value out of 16-bit range",
        "The tensor holds values beyond what the 16-bit type can represent.",
    ),
    Code(
        "O24-243",
        "warning",
        "activation out of 16-bit range",
        "The activation came near or beyond the largest 16-bit value on the calibration data, so "
        "its node and its readers stay in float32.",
    ),
    Code(
        "O24-244",
        "warning",
        "activation ranges not checked",
        "Without calibration data nothing is known of the activations. One that overflows in 16 "
        "bit makes the outputs infinite or NaN.",
        "pass --calib DATA, and compare the outputs",
    ),
    Code(
        "O24-245",
        "warning",
        "quantized already, and not as TensorRT takes it",
        "The model came with Q/DQ or integer operators that TensorRT refuses: zero points, UINT8, "
        "quantized biases, QLinear operators. What is built from it would be refused as well.",
        "`onnx24 lint` names each; `lint --fix --symmetric` repairs most",
    ),
    Code(
        "O24-246",
        "note",
        "quantized already",
        "Products of the model stand behind Q/DQ, and there was nothing to add to them.",
    ),
    Code(
        "O24-247",
        "warning",
        "INT8 hurts an output",
        "On the calibration data an output has less than 15 dB, or less than 99 % of the samples "
        "keep their class.",
        "leave the layers that are named in float: `qdq{none=NAME}`; or ask for more of them to be "
        "left by `qdq{min-output=DB}`",
    ),
    Code(
        "O24-248",
        "warning",
        "products stay float32",
        "The model's opset has no form of these products in the 16-bit type (Conv and "
        "ConvTranspose take BF16 from opset 22 on, Gemm and MatMul from 13 on), or they lie in "
        "bodies of If, Loop and Scan, which cast16 does not look into.",
        "put upgrade-opset{to=22} before cast16, where the target parses it (docs/targets.md)",
    ),
    Code(
        "O24-249",
        "note",
        "unchanged state of a Loop",
        "The body hands the state on as it came: it reads the first value from outside now, and "
        "the state is gone.",
    ),
    # --- 3xx rewrites ----------------------------------------------------------------------
    Code(
        "O24-250",
        "error",
        "scale is not positive",
        "TensorRT's parser refuses Q and DQ with a scale that is 0, negative or NaN.",
        "quantize again; a channel of zeros takes any positive scale",
    ),
    Code(
        "O24-251",
        "warning",
        "Q/DQ of another domain",
        "ONNX Runtime writes its own QuantizeLinear and DequantizeLinear below opset 21 "
        "(com.microsoft), NVIDIA ModelOpt writes TRT_FP8QuantizeLinear and TRT_FP8DequantizeLinear "
        "(trt), which ONNX Runtime does not run. TensorRT takes both like ONNX's.",
        "`onnx24 canonicalize` or `lint --fix` makes them ONNX's, where the opset has their types "
        "(FP8: 19)",
    ),
    Code(
        "O24-252",
        "error",
        "quantized constant of rank 0",
        "TensorRT's builder refuses a quantized scalar behind DequantizeLinear.",
        "`onnx24 lint --fix` makes it a float",
    ),
    Code(
        "O24-253",
        "error",
        "quantized constant is not read by DequantizeLinear",
        "TensorRT's builder refuses a constant of a quantized type that anything but DQ reads.",
        "`onnx24 lint --fix` computes what stands between, or move it behind DQ",
    ),
    Code(
        "O24-254",
        "error",
        "INT4 weight beside an INT8 activation",
        "TensorRT-RTX fails on convolutions of INT4 weights, and on INT4 with one scale a tensor, "
        "where the activation is INT8.",
        "leave the activation in float, or quantize the weight by channel or block",
    ),
    Code(
        "O24-255",
        "error",
        "FP8 without FP8 kernels",
        "The target has no FP8 kernels; TensorRT refuses to build such a model for it.",
        "choose a target of compute capability 8.9 or later, or INT8",
    ),
    Code(
        "O24-256",
        "warning",
        "bias is quantized to 8 bits",
        "TensorRT-RTX builds a bias of 8 bits behind DequantizeLinear; other releases are not "
        "known to, and it costs accuracy.",
        "`onnx24 lint --fix` makes it a float",
    ),
    Code(
        "O24-257",
        "note",
        "weight of integers recognised",
        "Cast and Mul by a constant scale became DequantizeLinear, which says the same; the weight "
        "keeps its 8 bits.",
    ),
    Code(
        "O24-258",
        "note",
        "Q/DQ of another domain made ONNX's",
        "The node is ONNX's operator now, which computes the same.",
    ),
    Code(
        "O24-259",
        "warning",
        "UINT8 is read as INT8",
        "TensorRT builds UINT8 activations with zero point 0, or none, as INT8: what lies above "
        "127 steps, half of the range, becomes 127 steps.",
        "`onnx24 lint --fix --symmetric` makes it INT8, with steps of twice the size",
    ),
    Code(
        "O24-260",
        "error",
        "scale of a convolution is no constant",
        "TensorRT-RTX's builder fails, or crashes, where a scale of an INT8 convolution is "
        "computed by more than arithmetic on constants: by a reduction of the weight, or at run "
        "time.",
        "`onnx24 canonicalize` computes what comes of constants; write other scales as constants",
    ),
    Code(
        "O24-264",
        "note",
        "pairs of a quantized model completed",
        "A 2:4 INT8 product's result, or the skip branch of a convolution's residual Add, is "
        "quantized now, through the pair that it had or a new one.",
    ),
    Code(
        "O24-265",
        "warning",
        "products in local functions",
        "The pass takes the main graph alone, and the model has products in local functions.",
        "put canonicalize before it, which replaces the calls by the functions' bodies",
    ),
    Code("O24-300", "note", "rewritten to a 1x1 convolution", "MatMul or Gemm became a Conv."),
    Code("O24-301", "note", "rewritten to a MatMul", "A 1x1 Conv became a MatMul."),
    Code(
        "O24-310",
        "note",
        "target prefers the MatMul",
        "On this TensorRT major MatMul itself is eligible and the conv form costs reformats.",
        "force it with matmul-to-conv1x1{when=always}",
    ),
    Code("O24-311", "note", "form not covered", "The product cannot be written as a 1x1 Conv."),
    Code("O24-312", "note", "no constant operand", "Both operands are computed at run time."),
    Code("O24-313", "note", "convolution stays", "The 1x1 Conv cannot be written as a MatMul."),
    Code("O24-320", "note", "constant folded", "A constant expression was computed."),
    Code("O24-321", "note", "dead code removed", "Nothing used the result."),
    Code("O24-322", "note", "function inlined", "A local function's body replaced its call."),
    Code(
        "O24-330",
        "note",
        "opset converted",
        "onnx.version_converter raised the model's opset, which a later pass needs.",
    ),
    Code(
        "O24-331",
        "error",
        "opset cannot be converted",
        "A later pass needs a newer opset, and onnx.version_converter refuses the model.",
        "export the model with a newer opset",
    ),
    Code("O24-332", "note", "packed for SpMM24", "The product became an onnx24::SpMM24."),
    Code(
        "O24-333",
        "note",
        "form not covered by SpMM24",
        "The product is no plain matrix product with a 2:4 weight on the right.",
    ),
    Code(
        "O24-334",
        "note",
        "no sparse product of this type",
        "cuSPARSELt multiplies 2:4 arrays of 16-bit floats, and int8 with int8 to 16-bit floats.",
        "cast16 makes float32 models 16-bit; spmm-plugin{storage=true} packs all the same",
    ),
    Code(
        "O24-335",
        "note",
        "sizes do not fit cuSPARSELt",
        "A 2:4 operand needs sizes that are multiples of 16, with int8 of 32.",
        "pad K and N when exporting",
    ),
    Code(
        "O24-336",
        "note",
        "not recorded as 2:4",
        "Only weights that are recorded as 2:4, and are so for this product, are packed.",
        "run prune24 before",
    ),
    Code(
        "O24-337",
        "error",
        "onnx24::SpMM24 means something else",
        "The model brings a local function of that name with another body or another opset.",
        "remove the function, or export the model again",
    ),
    Code(
        "O24-340", "note", "smoothed", "Outlier channels of the activation went into the weights."
    ),
    Code("O24-341", "note", "no outlier channels", "No channel reaches far beyond the others."),
    Code(
        "O24-342",
        "note",
        "scale cannot be absorbed",
        "The activation's channels cannot be scaled without another operator or without changing "
        "what something else reads.",
    ),
    Code("O24-343", "note", "equalized", "Both weights reach equally far in every channel."),
    Code("O24-344", "note", "cannot be equalized", "The product does not follow another alone."),
    Code("O24-345", "note", "equal already", "No channel is off by a factor of 2."),
    Code(
        "O24-346",
        "note",
        "nodes renamed",
        "Nodes of one graph shared a name, which ONNX Runtime refuses: later ones got "
        "`_2`, `_3`, …",
    ),
    Code(
        "O24-347",
        "note",
        "input made a constant",
        "A weight was also a graph input, which a caller could override. Now it is the constant "
        "that TensorRT has always taken it for.",
        "canonicalize{constant-inputs=false} keeps such inputs",
    ),
    # --- 4xx target ------------------------------------------------------------------------
    Code("O24-353", "note", "stored packed", "A 2:4 weight is stored without its zeros."),
    Code(
        "O24-354",
        "note",
        "not stored packed",
        "Only initializers that are 2:4 in every group, of a type that runtimes can unpack, are "
        "packed.",
        "run prune24 before; the reason says what stands against it",
    ),
    Code("O24-355", "note", "unpacked", "A weight that pack24 had stored is whole again."),
    Code(
        "O24-357",
        "error",
        "packed weights are damaged",
        "The arrays or attributes of an onnx24::Unpack24 do not belong together, or the model has "
        "another function of that name.",
        "take the model that was packed, or pack it again",
    ),
    Code(
        "O24-400",
        "warning",
        "unconfirmed on this target",
        "No public evidence says how this TensorRT treats the construct.",
    ),
    # --- 5xx backend -----------------------------------------------------------------------
    Code("O24-500", "error", "backend missing", "The backend's package or program is not there."),
    Code("O24-501", "error", "parser error", "The backend's ONNX parser refuses a node."),
    Code("O24-502", "error", "build failed", "The backend parsed the model but built no engine."),
    Code(
        "O24-503",
        "error",
        "backend crashed",
        "The backend's process ended by a signal; its log is in the report.",
    ),
    Code("O24-504", "error", "backend timed out", "The build took longer than --timeout."),
    Code("O24-505", "error", "bad shapes", "--shapes does not fit the model's inputs."),
    Code("O24-506", "warning", "backend warning", "The backend's log holds a warning."),
    Code(
        "O24-507",
        "error",
        "target not supported by the backend",
        "The backend cannot build for this compute capability or major.",
    ),
    Code(
        "O24-508",
        "note",
        "engine of another TensorRT",
        "The backend builds for the target's compute capability but for another TensorRT than "
        "the target names: the engine runs there, and says nothing about the target's kernels.",
    ),
    Code(
        "O24-509",
        "error",
        "option not supported by the backend",
        "This release of the backend does not know an option that was asked for.",
    ),
    Code(
        "O24-510",
        "error",
        "no GPU to measure on",
        "Times are only measured where an NVIDIA GPU and its driver are.",
        "`onnx24 bench --estimate` gives bounds from data-sheet peaks instead",
    ),
    # --- 6xx policy ------------------------------------------------------------------------
    Code(
        "O24-600",
        "error",
        "tolerance not met",
        "The compiled model differs from the original by more than was allowed.",
    ),
    Code("O24-610", "error", "not 2:4", "A weight that should be 2:4 is not."),
    Code(
        "O24-601",
        "warning",
        "limit missed on samples held out",
        "compile left layers dense or in float for a limit, which the calibration samples meet; "
        "the samples that nothing was fitted to do not confirm it.",
        "calibrate on more samples, set a stricter --limit, or let tune choose; --max-drop makes "
        "it an error",
    ),
    Code(
        "O24-611",
        "error",
        "2:4 coverage too low",
        "Less of what could be 2:4 is 2:4 than the policy asks for.",
        "`onnx24 inspect` lists the weights that are dense",
    ),
    Code(
        "O24-612",
        "warning",
        "nothing was checked",
        "No weight is recorded as 2:4, so that the check holds trivially.",
        "check24{require=eligible} asks for every weight that could be 2:4",
    ),
    Code(
        "O24-620",
        "error",
        "model outside the policy",
        "A property of the model as a whole (opset, size) is not what the policy allows.",
    ),
    Code(
        "O24-621",
        "error",
        "operator not allowed",
        "The policy does not allow an operator that the model uses.",
    ),
    Code(
        "O24-622",
        "error",
        "domain not allowed",
        "The policy does not allow a domain that the model uses.",
    ),
    Code(
        "O24-623",
        "error",
        "type not allowed",
        "An input, an output or a weight has a type that the policy does not allow.",
    ),
    Code(
        "O24-624",
        "error",
        "dynamic dimension not allowed",
        "An input has a dynamic dimension where the policy wants a size.",
        "export with a fixed shape, or allow it with model.dynamic_dims",
    ),
    Code(
        "O24-625",
        "error",
        "metadata missing",
        "metadata_props lacks an entry that the policy requires, or its value does not match.",
    ),
    Code(
        "O24-626",
        "error",
        "provenance missing or wrong",
        "The model does not say what made it and of what, or says something else than the policy "
        "or the files say.",
        "compile it again with onnx24; `onnx24 verify-provenance` says what is recorded",
    ),
    Code(
        "O24-627",
        "warning",
        "shapes contradict",
        "A node cannot work on the shapes that it is given, or the model declares another shape "
        "than its nodes make. Runtimes may still take it; TensorRT refuses the former.",
        "export the model again",
    ),
    Code(
        "O24-628",
        "warning",
        "dimensions of one name",
        "Two dynamic dimensions of one input have one name, so that TensorRT builds only where "
        "they are of one size. Exporters that write '?' mean no such thing.",
        "where the sizes differ, export the model with a name for each",
    ),
    Code(
        "O24-629",
        "error",
        "signature missing or wrong",
        "No key that is trusted signed the model as it is: nobody did, somebody else, or it was "
        "edited since.",
        "have it signed again by `onnx24 sign`, once it is known what was changed",
    ),
    Code(
        "O24-630",
        "error",
        "zero point is not 0",
        "TensorRT quantizes symmetrically: the zero points of Q and DQ must be 0.",
        "`onnx24 lint --fix --symmetric` makes them 0 and says what it costs, or quantize anew",
    ),
    Code(
        "O24-631",
        "error",
        "quantized type not taken",
        "TensorRT takes INT8, INT4 weights, FP8 and FP4. UINT8 does not parse, but for activations "
        "with zero point 0, which are read as INT8: the upper half of the range is lost.",
        "`onnx24 lint --fix --symmetric` makes it INT8, with steps of twice the size",
    ),
    Code(
        "O24-632",
        "warning",
        "activation scale is no scalar",
        "The scale of an activation must have rank 0; one of shape [1], or one for each channel, "
        "can keep TensorRT from INT8 kernels.",
        "write the scale as a scalar",
    ),
    Code(
        "O24-633",
        "error",
        "bias is quantized",
        "INT32 behind DequantizeLinear does not parse; TensorRT wants biases as floats.",
        "`onnx24 lint --fix` makes it a float",
    ),
    Code(
        "O24-634",
        "warning",
        "weight is not quantized by output channel",
        "One scale for a whole weight, or scales along another axis, cost accuracy or the INT8 "
        "kernel.",
        "quantize weights along the output channels",
    ),
    Code(
        "O24-635",
        "error",
        "integer operator",
        "TensorRT has no QLinearConv, QLinearMatMul, ConvInteger or MatMulInteger.",
        "write Q/DQ pairs around the float operator",
    ),
    Code(
        "O24-636",
        "warning",
        "unpaired QuantizeLinear",
        "What QuantizeLinear makes is read by something else than DequantizeLinear: no kernel "
        "fuses it. TensorRT-RTX 1.7 builds it; other releases are not known to.",
    ),
    Code(
        "O24-637",
        "warning",
        "one operand quantized",
        "Only one operand of the product stands behind DQ, so that it does not run in INT8.",
        "quantize both operands, or neither",
    ),
    Code(
        "O24-638",
        "warning",
        "Q/DQ before a residual Add",
        "A pair between a convolution and the Add behind it keeps TensorRT from making the sum "
        "part of the INT8 kernel.",
        "quantize the other branch instead; `onnx24 qdq --calib DATA` moves the pair there",
    ),
    Code(
        "O24-639",
        "warning",
        "sparse INT8 product with a float result",
        "TensorRT takes a sparse INT8 kernel only INT8-in and INT8-out, and nothing quantizes "
        "the result.",
        "`onnx24 qdq --calib DATA` places the pair, in a model that is quantized already, too",
    ),
    Code(
        "O24-640",
        "error",
        "quantized share too low",
        "Fewer products have both operands quantized than the policy asks for.",
    ),
    Code(
        "O24-641",
        "error",
        "not what MLflow loads",
        "The version's MLmodel does not say of one ONNX file among its files that MLflow loads "
        "it, so "
        "that a judgement of any file would be no judgement of the model.",
        "log the model again with mlflow.onnx.log_model",
    ),
    Code(
        "O24-642",
        "error",
        "queue file cannot be used",
        "The file of waiting versions is no file, is damaged, belongs to another program, or "
        "another "
        "service works on it.",
        "name another file with --queue, or stop the other service",
    ),
    Code(
        "O24-645",
        "error",
        "key cannot be used",
        "The file holds no Ed25519 key: `onnx24 sign` takes a private one without a password in "
        "PEM, whoever checks takes public ones in PEM or as OpenSSH writes them.",
        "openssl genpkey -algorithm ed25519 -out key.pem; "
        "openssl pkey -in key.pem -pubout -out key.pub",
    ),
    Code(
        "O24-646",
        "error",
        "cryptography is not installed",
        "Signatures are made and checked by that library, which is an optional dependency.",
        "pip install 'onnx24[sign]'",
    ),
    Code(
        "O24-650",
        "error",
        "task metric not met",
        "Accuracy, PNR or NDCG on the policy's data is below what the policy asks for.",
    ),
    Code(
        "O24-651",
        "error",
        "latency not met",
        "A measurement in the ledger is not what the policy asks for.",
    ),
    Code(
        "O24-652",
        "error",
        "ledger cannot be used",
        "The ledger cannot be read, lacks the measurement, or is another model's.",
        "measure this model and write the ledger anew",
    ),
    Code(
        "O24-653",
        "error",
        "no engine",
        "The backend that the policy names builds no engine of the model.",
    ),
    Code(
        "O24-660",
        "error",
        "no better than the champion",
        "The registry's current champion is better in something that the policy limits.",
    ),
    # --- 8xx verifier ----------------------------------------------------------------------
    Code("O24-800", "error", "checker", "onnx.checker refuses the model after the pass."),
    Code(
        "O24-801",
        "error",
        "interface changed",
        "An input or output changed its name, type or shape.",
    ),
    Code("O24-802", "error", "name defined twice", "A value is produced twice in its scope."),
    Code("O24-803", "error", "name undefined", "A node reads a value that nothing defines."),
    Code("O24-804", "error", "not sorted", "A node stands before one whose result it needs."),
    Code("O24-805", "error", "opset import missing", "A node's domain is not imported."),
    Code("O24-806", "error", "weight unreadable", "An initializer's payload is missing or short."),
    Code(
        "O24-807",
        "error",
        "2:4 lost",
        "A weight that was recorded as 2:4 is not 2:4 any more in the values that its "
        "consumer sees, or has disappeared without a successor.",
    ),
    # --- 9xx our own fault -----------------------------------------------------------------
    Code(
        "O24-900",
        "error",
        "internal error",
        "A bug in onnx24. The reproducer folder replays it.",
        "please report it with the reproducer",
    ),
    Code("O24-901", "error", "undeclared effect", "A pass changed what it declares not to change."),
    Code(
        "O24-903",
        "error",
        "refused edit",
        "A pass tried an edit that the weightless view does not allow: weights through the view, "
        "changed inputs or outputs, a name that is taken, a domain that is not imported.",
    ),
    Code(
        "O24-902",
        "error",
        "numeric check failed",
        "A pass that should preserve the function changed the outputs.",
    ),
    Code(
        "O24-904",
        "warning",
        "pass taken back",
        "A pass that says that it keeps the function changed the outputs, by more than rounding "
        "explains. The guard took it back, and the run went on without it: the result is right, "
        "and lacks what the pass would have done. The reproducer folder shows it.",
        "please report it with the reproducer",
    ),
    Code(
        "O24-905",
        "note",
        "not guarded",
        "Whether passes kept the function was not checked: ONNX Runtime can't run the model, or "
        "its outputs can't be compared, or it is too large; the message says which.",
        "compare the result with `onnx24 compare` on real data",
    ),
    Code(
        "O24-906",
        "error",
        "undeclared code",
        "A pass said something under a code that it does not list in `codes`, so that its page, "
        "policies and reports don't know of it.",
    ),
)

OWN: dict[str, Code] = {entry.id: entry for entry in _TABLE}
CODES: dict[str, Code] = dict(OWN)
"""With those of the plug-ins that are loaded."""


def register(entry: Code) -> None:
    """Add a plug-in's code. The same one may come again.

    Raises: ValueError for a name that is taken or ours, or a severity that there is not.
    """
    if entry.id.startswith("O24-") or CODES.get(entry.id, entry) != entry:
        raise ValueError(f"code {entry.id!r} is taken; a plug-in's begin with a word of its own")
    if entry.severity not in ("note", "warning", "error"):
        raise ValueError(f"code {entry.id!r}: severity is note, warning or error")
    CODES[entry.id] = entry


def lookup(code: str) -> Code:
    """The entry of a code. Raises: KeyError for one that does not exist."""
    return CODES[code]
