"""Train with PyTorch: on one CPU, on one GPU, or on several of either.

    python examples/engines/train_torch.py names.txt --save names
    torchrun --nproc_per_node=2 examples/engines/train_torch.py poems.txt --n-embd 256
    torchrun --nproc_per_node=8 examples/engines/train_torch.py web.txt --start gpt2
        --dtype bfloat16 --compile --batch-size 256 --accumulate 4 --lr 0.0003

Options, progress, Ctrl-C, --save and --resume work as in microgpt.py; --help shows a
few more options. microgpt.py can also resume the saved training run and write with the
saved model.

torchrun starts the processes. DistributedDataParallel adds up their gradients, over
NCCL on GPUs, over gloo on CPUs. --batch-size counts all processes together, so training
on many processes gives the same result as on one, except for rounding. Only the first
process prints and saves. To resume on several machines, all of them must see the
directory. After a Ctrl-C, torchrun waits 30 seconds for the run to save and to write
its samples.

MFU, the model FLOPs utilisation, is the share of the machine's peak speed that goes
into computation that the model itself requires. Per token, that is 6 operations for
each parameter, except those of the position embedding, and 12 n_layer n_embd for each
token that it may look at. Source: Chowdhery et al. 2022, "PaLM", appendix B.
"""

import argparse
import contextlib
import io
import math
import os
import random
import signal
import sys
import time
import warnings

try:
    import torch_engine  # noqa: I001  first: PyTorch would warn at length of a missing NumPy
    import safetensors.torch
    import torch
except ImportError as error:
    libraries = "torch numpy safetensors"
    message = f"train_torch: it takes {error.name}: python -m pip install {libraries}"
    raise (SystemExit if __name__ == "__main__" else ImportError)(message) from None
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import microgpt
from microgpt import GPT, AdamW, is_linear_weight, parameter_count

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}
DEFAULTS = {
    "device": "cuda" if torch.cuda.is_available() else "cpu",
    "dtype": "float32",
    "accumulate": 1,
    "compile": False,
    "start": "",
    "random": False,
    "peak": 0.0,
}
OPTIONS = {
    "device": "cpu, cuda, ...",
    "dtype": "float32, float64, or bfloat16: mixed precision.",
    "accumulate": "Parts into which a process splits its share of a batch.",
    "compile": "Compile the model. The first step takes a minute, and windows are "
    "padded to the block size: for long texts, not for names.",
    "start": "Start from the model and the tokenizer in this directory.",
    "random": "With --start: use only its shape and its tokenizer.",
    "peak": "Peak speed of a device, in TFLOP/s; 0 measures it.",
}


class Module(torch.nn.Module):
    """A GPT as a module, which DistributedDataParallel and compile require."""

    def __init__(self, model):
        super().__init__()
        params = {name: torch.nn.Parameter(x) for name, x in model.params.items()}
        self.all = torch.nn.ParameterList(params.values())
        self.gpt = torch_engine.TensorGPT(model.config, params)

    def forward(self, tokens, targets):
        """tokens and targets [B, T] -> the mean loss."""
        return microgpt.cross_entropy(self.gpt(tokens), targets)


class TorchAdamW:
    """torch.optim.AdamW as a Trainer's optimizer."""

    def __init__(self, params, weight_decay):
        ours = AdamW({})
        self.params = params
        self.beta1 = ours.beta1
        self.beta2 = ours.beta2
        decayed = {"params": [], "weight_decay": weight_decay}
        others = {"params": [], "weight_decay": 0.0}
        for name, x in params.items():
            group = decayed if is_linear_weight(name) else others
            group["params"].append(x)
        betas = (ours.beta1, ours.beta2)
        self.torch = torch.optim.AdamW(
            [decayed, others], betas=betas, eps=ours.eps, fused=True
        )
        zeros = {name: torch.zeros_like(x) for name, x in params.items()}
        self.restore(0, zeros, zeros)

    def restore(self, t, m, v):
        """Continue after t steps, with the averages from a checkpoint."""
        self.t = t
        self.m = {}
        self.v = {}
        for name, x in self.params.items():
            self.m[name] = torch_engine.to_tensor(m[name], x.device, x.dtype).clone()
            self.v[name] = torch_engine.to_tensor(v[name], x.device, x.dtype).clone()
            self.torch.state[x] = {
                "step": torch.tensor(float(t), device=x.device),
                "exp_avg": self.m[name],
                "exp_avg_sq": self.v[name],
            }

    def step(self, gradients, lr, factor=1.0):
        """Update every parameter once, with its gradient times the factor."""
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        for group in self.torch.param_groups:
            group["lr"] = lr
        self.torch.step()
        self.t += 1


class TorchEngine(torch_engine.TorchLayers):
    """An engine in each process. All take the same steps; the first process leads.

    `accumulate` is the number of parts of a process's share of a batch. `peak` is the
    peak speed of a device, in TFLOP/s; 0 measures it.
    """

    def __init__(
        self, device="cpu", dtype="float32", accumulate=1, compiled=False, peak=0.0
    ):
        super().__init__(device, DTYPES[dtype])
        self.dtype_name = dtype
        self.accumulate = accumulate
        self.compiled = compiled
        self.rank = 0
        self.n_processes = 1
        if dist.is_initialized():
            self.rank = dist.get_rank()
            self.n_processes = dist.get_world_size()
        self.leads = self.rank == 0
        self.in_touch = self.n_processes > 1  # do the others listen?
        kind = torch.bfloat16 if dtype == "bfloat16" else self.dtype
        self.peak = self.n_processes * (peak * 1e12 or measured_peak(device, kind))

    def new_model(self, config, seed):
        """If there are many parameters, PyTorch draws them: millions in a second."""
        if parameter_count(config) <= microgpt.MOST_PARAMETERS:
            return super().new_model(config, seed)
        generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(63))
        params = {}
        for name, shape in microgpt.parameter_shapes(config).items():
            if len(shape) == 1:
                params[name] = torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
                continue
            std = 0.02 * math.sqrt(768 / config.n_embd)
            if name == "wpe.weight":
                std *= 0.5
            if name.endswith("c_proj.weight"):
                std /= math.sqrt(2 * config.n_layer)
            params[name] = torch.empty(shape).normal_(0, std, generator=generator)
        return GPT(config, params)

    def prepare(self, model):
        """The parameters become tensors, which the Trainer's model and ours share."""
        tensors = torch_engine.to_tensors(model, self.device, self.dtype)
        self.module = Module(tensors)
        self.parallel = self.module
        if self.n_processes > 1:
            self.parallel = DistributedDataParallel(
                self.module, gradient_as_bucket_view=True
            )
        self.forward = torch.compile(self.parallel) if self.compiled else self.parallel
        self.longest = 0  # of all windows so far, in tokens to predict
        return tensors

    def optimizer(self, model, weight_decay):
        return TorchAdamW(self.module.gpt.params, weight_decay)

    def norm(self, gradients):
        norms = torch._foreach_norm(gradients)
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    def gradients(self, model, batch):
        """The loss and the gradients of a batch, of all processes together."""
        if len(batch) < self.n_processes:
            raise ValueError(
                f"batch_size is {len(batch)}: must be at least {self.n_processes}, "
                "a window for each process"
            )
        if not self.leads:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first handles Ctrl-C
        goes_on = self.n_processes == 1 or self.first_says(True)
        self.in_touch = False  # if this step fails, the others do not listen
        if not goes_on:
            raise StopIteration
        try:
            loss = self.backward(model, batch)
        except Exception as error:
            problem = first_line(error)
            if not self.leads:  # the first one's errors are shown anyway
                said = f"train_torch: process {self.rank}: {problem}"
                print(said, file=sys.__stderr__)
            if isinstance(error, RuntimeError):
                raise RuntimeError(problem) from error
            raise
        # If the loss is not finite, all processes end with the same error.
        self.in_touch = self.n_processes > 1 and math.isfinite(loss)
        return loss, [x.grad for x in self.module.gpt.params.values()]

    def backward(self, model, batch):
        """Compute this process's share, part by part -> the loss of the whole batch.

        Each part's loss is weighted by its number of predictions, so the sums are those
        of the whole batch.
        """
        for x in self.module.gpt.params.values():
            x.grad = None
        self.longest = max(self.longest, max(map(len, batch)) - 1)
        share = batch[self.rank :: self.n_processes]
        n_parts = min(self.accumulate, len(share))
        total = torch.zeros((), device=self.device, dtype=self.dtype)
        for i in range(n_parts):
            part = share[i::n_parts]
            weight = count_predictions(part) / count_predictions(batch)
            waits = self.n_processes > 1 and i < n_parts - 1
            with self.parallel.no_sync() if waits else contextlib.nullcontext():
                loss = self.loss_of(part) * weight
                total += loss.detach()
                loss = loss * self.n_processes  # gradients are averaged
                loss.backward()
        if self.n_processes > 1:
            dist.all_reduce(total)
        return float(total)

    def loss_of(self, windows):
        """The mean loss of windows, with its graph."""
        length = self.module.gpt.config.block_size
        if not self.compiled:  # else all windows are padded to the same length
            length = max(map(len, windows)) - 1
        tokens, targets = torch_engine.side_by_side(windows, length, self.device)
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, self.dtype_name == "bfloat16"):
            return self.forward(tokens, targets)

    def first_says(self, goes_on):
        """The first process tells the others whether there is another step."""
        word = torch.tensor(float(goes_on), device=self.device)
        dist.broadcast(word, 0)
        return bool(word)

    def close(self):
        """The first process tells the others that there are no more steps."""
        if self.in_touch:
            self.in_touch = False
            self.first_says(False)

    def write_tensors(self, tensors, dtype="F64", **metadata):
        """Like microgpt's own, but with the safetensors library."""
        numbers = {}
        for name, x in tensors.items():
            if not x.isfinite().all():
                raise ValueError(f"{name} has numbers that are not finite")
            x = x.cpu().to({"F64": torch.float64, "F32": torch.float32}[dtype])
            if is_linear_weight(name):
                x = x.t()  # GPT-2's files have [n_in, n_out]
            numbers[name] = x.contiguous()
        yield safetensors.torch.save(numbers, {"format": "pt", **metadata})

    def about(self):
        return (
            f"PyTorch engine: {self.n_processes} x {self.device}, {self.dtype_name}, "
            f"peak {self.peak / 1e12:.3g} TFLOP/s"
        )

    def rate(self, tokens_per_second):
        """The speed, with the MFU."""
        config = self.module.gpt.config
        n_parameters = parameter_count(config) - parameter_count(config, "wpe")
        per_token = (
            6 * n_parameters + 12 * config.n_layer * config.n_embd * self.longest
        )
        share = tokens_per_second * per_token / self.peak
        return f"{super().rate(tokens_per_second)}  MFU {share:.1%}"


def first_line(error):
    """What is wrong, without PyTorch's advice on how to report it."""
    lines = str(error).splitlines() or [type(error).__name__]
    problem = microgpt.printable(lines[0])
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        problem += " (without --compile, it is not needed)"
    return problem


def count_predictions(windows):
    """How many tokens these windows predict."""
    return sum(len(window) - 1 for window in windows)


def measured_peak(device, dtype):
    """Operations per second, in the product of two large matrices."""
    n = 8192 if torch.device(device).type == "cuda" else 1024
    a = torch.randn(n, n, device=device).to(dtype)
    (a @ a)[0, 0].item()  # warms up, and waits for the device
    n_products = 0
    started = time.perf_counter()
    while n_products == 0 or time.perf_counter() - started < 0.2:
        (a @ a)[0, 0].item()
        n_products += 1
    return n_products * 2 * n**3 / (time.perf_counter() - started)


def parse(argv):
    """-> (our options as {name: value}, the words that are for microgpt.py)"""
    parser = microgpt.make_parser(main, {"PyTorch": OPTIONS}, {}, DEFAULTS)
    given, rest = parser.parse_known_args(argv)
    options = {**DEFAULTS, **vars(given)}
    if "--help" in rest or "-h" in rest:
        parser.print_help()
    if options["dtype"] not in DTYPES:
        kinds = ", ".join(DTYPES)
        raise ValueError(f"dtype is {options['dtype']!r}: must be one of {kinds}")
    if options["accumulate"] < 1:
        raise ValueError(f"accumulate is {options['accumulate']}: must be 1 or more")
    if not 0 <= options["peak"] < math.inf:
        raise ValueError(f"peak is {options['peak']}: must be a number of TFLOP/s")
    if "start" in given and not options["start"]:
        raise ValueError("start is '': must name a directory")
    if options["random"] and not options["start"]:
        raise ValueError("--random is for --start DIR")
    return options, rest


def usable_devices():
    """The names of the devices that PyTorch finds here."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def find_device(name, dtype):
    """The device of this name; of several GPUs, the one of this process."""
    asked_for = name
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    found = usable_devices()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of kinds that are no more
            device = torch.device(name)
            torch.ones(1, device=device).item()  # raises if it is not there
    except Exception:  # of any kind, which depends on the device
        if name in found:
            raise  # it is there, but in use
        usable = " or ".join(found)
        raise ValueError(
            f"device is {asked_for!r}: PyTorch finds none here; use {usable}"
        ) from None
    problem = lacks(device, dtype)
    if problem:
        raise ValueError(f"dtype is {dtype!r}: {problem}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def lacks(device, dtype):
    """Why a device cannot compute with this dtype, or an empty text if it can."""
    if dtype == "float64" and device.type == "mps":
        return "mps has no such numbers, use float32"
    if dtype != "bfloat16" or device.type != "cuda" or torch.cuda.is_bf16_supported():
        return ""
    return f"{device} has no such numbers, use float32"


def seed_of(options):
    """The --seed among microgpt's options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = microgpt.refuse
    parser.add_argument("--seed", type=int, default=microgpt.TrainConfig.seed)
    return parser.parse_known_args(options)[0].seed


def run(argv):
    """Train as the options say -> an exit status."""
    options, rest = parse(argv)
    device = find_device(options["device"], options["dtype"])
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # torchrun sets it
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    names = ("dtype", "accumulate", "compile", "peak")
    engine = TorchEngine(device, *[options[name] for name in names])
    start = None
    if options["start"]:
        if sys.stderr.isatty():  # GPT-2 takes some seconds
            name = microgpt.printable(options["start"])
            print(f"train_torch: loading {name}", file=sys.stderr)
        model = microgpt.load_model(options["start"])
        if options["random"]:
            model = engine.new_model(model.config, seed_of(rest))
        start = (model, microgpt.load_tokenizer(options["start"]))
    return microgpt.main(rest, engine, start)


def main(argv=None):
    """usage: train_torch.py [FILE] [options], with these and those below

    Train with PyTorch, on a CPU or a GPU, or with torchrun on several. It takes some
    seconds to start.
    """
    with contextlib.ExitStack() as silence:
        if int(os.environ.get("RANK", 0)) > 0:  # the first process speaks for all
            silence.enter_context(contextlib.redirect_stdout(io.StringIO()))
            silence.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            return run(argv)
        except (OSError, ValueError, RuntimeError, AssertionError) as error:
            print(f"train_torch: {first_line(error)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("train_torch: interrupted", file=sys.stderr)
            return 130
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
