"""Train with PyTorch: on one processor, on a GPU, or on many of either.

    python examples/engines/train_torch.py names.txt --save names
    torchrun --nproc_per_node=2 examples/engines/train_torch.py poems.txt --n-embd 256 --n-layer 6
    torchrun --nproc_per_node=8 examples/engines/train_torch.py web.txt --start gpt2 --save mine
        --dtype bfloat16 --compile --batch-size 256 --accumulate 4 --lr 0.0003

Options, progress, Ctrl-C, --save and --resume are those of microgpt.py, whose command line this is.
On top of them:

    --device X      cpu, cuda, ... (cuda if there is one)
    --dtype X       float32, float64, or bfloat16: mixed precision, parameters in float32
    --accumulate N  take each process's share of a batch in N parts, one after the other
    --compile       let torch.compile make one kernel of many; the first step takes a minute, and
                    windows are filled up to the block: for long texts, not for names
    --start DIR     begin with the model and the tokens of a directory, GPT-2's or one of microgpt's
    --random        with --start: its shape and its tokens, but random parameters
    --peak X        what the device can do, in TFLOP/s (otherwise a large product is timed)

torchrun starts the processes, DistributedDataParallel adds up their gradients: over NCCL on GPUs,
over gloo on processors. --batch-size is that of all processes together, so a training is the same
on one as on many, but for rounding. The first process alone prints and saves; to resume on several
machines, all must see the directory. What is saved is what microgpt.py saves: it writes, and can be
trained on, without PyTorch, and the other way round.

MFU, the model FLOPs utilisation, is the share of the machine's peak that goes into the operations
which the model itself takes, for each token: 6 for each parameter, those of positions left out, and
12 n_layer n_embd for each token that it may look at. Source: Chowdhery et al. 2022, "PaLM",
appendix B. After a Ctrl-C torchrun waits 30 seconds for what is left to save and to write.
"""

import argparse
import contextlib
import io
import math
import os
import signal
import sys
import time
from dataclasses import replace

try:
    import torch_engine  # noqa: I001  first, as PyTorch alone would warn of a missing NumPy at length
    import safetensors.torch
    import torch
except ImportError as error:
    kind = SystemExit if __name__ == "__main__" else ImportError
    raise kind(
        f"train_torch: it takes {error.name}: python -m pip install torch numpy "
        "safetensors"
    ) from None
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(
    0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
)

import microgpt
from microgpt import GPT, AdamW, TrainConfig, Trainer, parameter_count

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}
HELD_OUT = 2**15  # tokens on which a held-out loss is measured, at most: those of 32
# windows of 1,024


# --- The model -----------------------------------------------------------------------------------


class Module(torch.nn.Module):
    """A GPT as the kind of object that DistributedDataParallel and torch.compile take."""

    def __init__(self, gpt, device, dtype):
        super().__init__()
        tensors = {
            name: torch_engine.to_tensor(x, device, dtype).clone()
            for name, x in gpt.params.items()
        }
        self.parameter_list = torch.nn.ParameterList(tensors.values())
        self.gpt = GPT(gpt.config, dict(zip(tensors, self.parameter_list)))

    def forward(self, tokens, targets):
        """tokens, targets [B, T], targets that are not to be predicted -1 -> the mean loss."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return microgpt.cross_entropy(self.gpt(tokens, positions), targets)


def side_by_side(windows, length, device):
    """Windows -> tokens, targets [B, length]; short windows are filled up with 0, and with -1."""
    filled = [[*window, *[-1] * (length + 1 - len(window))] for window in windows]
    rows = torch.tensor(filled).to(device, non_blocking=True)
    return rows[:, :-1].clamp(min=0), rows[:, 1:]


in_pure_python = GPT.initial_params


def initial_params(self, rng):
    """What GPT.initial_params gives, by PyTorch's generator, which has millions in a second."""
    if parameter_count(self.config) <= microgpt.MOST_PARAMETERS:
        return in_pure_python(self, rng)
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    std, params = 0.02 * math.sqrt(768 / self.config.n_embd), {}
    for name, shape in microgpt.parameter_shapes(self.config).items():
        scale = (
            0.5
            if "wpe" in name
            else 1 / math.sqrt(2 * self.config.n_layer)
            if "c_proj" in name
            else 1.0
        )
        params[name] = (
            torch.full(shape, float("weight" in name))
            if len(shape) == 1
            else torch.empty(shape).normal_(0, std * scale, generator=generator)
        )
    return params


# --- The optimizer -------------------------------------------------------------------------------


class TorchAdamW:
    """torch.optim.AdamW as a Trainer's optimizer. m and v are those of microgpt.AdamW, which leaves
    out the factors 1 - beta of torch's; in float64 the way there and back changes no float32."""

    def __init__(self, params, weight_decay):
        self.params, ours = params, AdamW({})
        self.beta1, self.beta2 = ours.beta1, ours.beta2
        decayed = [
            x for name, x in params.items() if ".c_" in name and "weight" in name
        ]
        others = [
            x for name, x in params.items() if not (".c_" in name and "weight" in name)
        ]
        self.torch = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            betas=(ours.beta1, ours.beta2),
            eps=ours.eps,
            fused=True,
        )

    def step(self, gradients, lr, factor):
        """Move every parameter once, against its gradient times the factor."""
        if factor is not None:
            torch._foreach_mul_(gradients, factor)
        for group in self.torch.param_groups:
            group["lr"] = lr
        self.torch.step()

    def _get(self, key, factor):
        return {
            name: self.torch.state[x].get(key, torch.zeros_like(x)).double() / factor
            for name, x in self.params.items()
        }

    def _set(self, key, tables, factor):
        for name, x in self.params.items():
            table = (
                torch_engine.to_tensor(tables[name], x.device, torch.float64) * factor
            )
            self.torch.state[x][key] = table.to(x.dtype)

    m = property(
        lambda self: self._get("exp_avg", 1 - self.beta1),
        lambda self, tables: self._set("exp_avg", tables, 1 - self.beta1),
    )
    v = property(
        lambda self: self._get("exp_avg_sq", 1 - self.beta2),
        lambda self, tables: self._set("exp_avg_sq", tables, 1 - self.beta2),
    )

    def _set_steps(self, steps):
        for x in self.params.values():
            self.torch.state[x]["step"] = torch.tensor(float(steps), device=x.device)

    steps = property(
        lambda self: int(
            max((state["step"] for state in self.torch.state.values()), default=0)
        ),
        _set_steps,
    )


def tensor_file(tensors, dtype="F64", **metadata):
    """Tensors -> the pieces of a .safetensors file, as microgpt's own, by the library."""
    numbers = {}
    for name, x in tensors.items():
        if not x.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")
        x = (
            x.t() if ".c_" in name and x.dim() == 2 else x
        )  # GPT-2's files have [n_in, n_out]
        kind = {"F64": torch.float64, "F32": torch.float32}[dtype]
        numbers[name] = x.detach().to("cpu", kind).contiguous()
    yield safetensors.torch.save(numbers, {"format": "pt", **metadata})


# --- Training ------------------------------------------------------------------------------------


class TorchTrainer(Trainer):
    """microgpt.Trainer on PyTorch, one in each process. They take the same steps together; the
    first leads: before each step it tells the others whether there is one."""

    device, dtype, accumulate, compile, peak = "cpu", "float32", 1, False, 0.0

    def __init__(self, model, tokenizer, documents, config=None, executor=None):
        config = replace(
            config or TrainConfig(), engine="tensor"
        )  # to be resumed without PyTorch
        self.rank, self.processes = (
            (dist.get_rank(), dist.get_world_size())
            if (dist.is_initialized())
            else (0, 1)
        )
        least = self.processes * self.accumulate
        if config.workers > 1 or executor:
            raise ValueError(
                f"workers is {config.workers}: must be 1, without an executor; it is "
                "torchrun that starts processes"
            )
        if config.batch_size < least:
            raise ValueError(
                f"batch_size is {config.batch_size}: must be at least {least}, for "
                f"{self.processes} x {self.accumulate} parts (processes, accumulate)"
            )
        super().__init__(model, tokenizer, documents, config)
        most = max(1, HELD_OUT // model.config.block_size)
        self.val_windows = self.val_windows[:most] if self.rank == 0 else []
        self.module = self.parallel = Module(model, self.device, DTYPES[self.dtype])
        if self.processes > 1:
            self.parallel = DistributedDataParallel(
                self.module, gradient_as_bucket_view=True
            )
        self.forward = torch.compile(self.parallel) if self.compile else self.parallel
        params = self.module.gpt.params
        self.optimizer = TorchAdamW(params, config.weight_decay)
        self.model = torch_engine.TensorGPT(
            model.config, {name: x.detach() for name, x in params.items()}
        )
        self.leading = self.rank == 0 and self.processes > 1
        peak = self.peak * 1e12 or self._measured_peak()
        self.flops, self.peak = self._flops(), self.processes * peak

    def gradients(self, batch):
        """The loss of a batch, its gradients, the factor that clips them: of all processes."""
        if self.rank:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first
        if self.processes > 1 and not self._lead(True):
            raise StopIteration
        leading, self.leading = (
            self.leading,
            False,
        )  # should this fail, the others are elsewhere
        try:
            loss, gradients = self._share(batch)
        except Exception as error:
            if self.rank:  # the first one's errors are shown anyway
                print(f"train_torch: process {self.rank}: {error}", file=sys.__stderr__)
            raise
        limit, factor = self.config.clip, None
        if limit:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            factor = limit / norm.clamp(min=limit)
        self.leading = leading and math.isfinite(
            loss
        )  # else all end with the same error
        return loss, gradients, factor

    def _share(self, batch):
        """This process's share of a batch, part by part. A part's loss counts by its tokens, so
        that the sums are those of the whole."""
        for x in self.module.gpt.params.values():
            x.grad = None
        total = sum(len(window) - 1 for window in batch)
        share = batch[self.rank :: self.processes]
        parts, loss = [share[i :: self.accumulate] for i in range(self.accumulate)], 0.0
        for part in parts:
            longest = max(map(len, part)) - 1
            rows = side_by_side(
                part,
                self.model.config.block_size if self.compile else longest,
                self.device,
            )
            weight = sum(len(window) - 1 for window in part) / total
            alone = (
                self.processes == 1 or part is parts[-1]
            )  # or after it gradients are summed
            with contextlib.nullcontext() if alone else self.parallel.no_sync():
                with torch.autocast(
                    torch.device(self.device).type,
                    torch.bfloat16,
                    self.dtype == "bfloat16",
                ):
                    part_loss = self.forward(*rows) * weight
                (
                    part_loss * self.processes
                ).backward()  # DDP takes the mean of the processes
            loss = loss + part_loss.detach()
        if self.processes > 1:
            dist.all_reduce(loss)
        return float(loss), [x.grad for x in self.module.gpt.params.values()]

    def _lead(self, on):
        message = torch.tensor(float(on), device=self.device)
        dist.broadcast(message, 0)
        return bool(message)

    def close(self):
        """The first process tells the others that there is no further step; they end."""
        if self.leading and self.step < self.config.steps:
            self._lead(False)
        self.leading = False
        if self.rank and sys.exc_info()[0] is None:
            raise SystemExit

    def save(self, directory):
        """As microgpt.Trainer does; the first process alone."""
        if self.rank == 0:
            super().save(directory, tensor_file)

    def about(self):
        """For the command line: what it runs on."""
        return (
            f"PyTorch engine: {self.processes} x {self.device}, {self.dtype}, "
            f"peak {self.peak / 1e12:.3g} TFLOP/s"
        )

    def rate(self, speed):
        """For the progress line: tokens a second, and their share of what the devices can do."""
        return f"{speed:,.0f} tokens/s  MFU {speed * self.flops / self.peak:.1%}"

    def _flops(self):
        """Operations for a token of a window of full length, forward and backward."""
        config, length = self.model.config, max(map(len, self.windows)) - 1
        return (
            6 * (parameter_count(config) - parameter_count(config, "wpe"))
            + 12 * config.n_layer * config.n_embd * length
        )

    def _measured_peak(self):
        """Operations a second in the product of two large matrices."""
        n = 8192 if torch.device(self.device).type == "cuda" else 1024
        dtype = torch.bfloat16 if self.dtype == "bfloat16" else DTYPES[self.dtype]
        a, counts, started = torch.randn(n, n, device=self.device).to(dtype), 0, 0.0
        while not counts or time.perf_counter() - started < 0.2:
            (a @ a)[0, 0].item()
            started, counts = (
                started or time.perf_counter(),
                counts + 1,
            )  # the first warms up
        return (counts - 1) * 2 * n**3 / (time.perf_counter() - started)


# --- The command ---------------------------------------------------------------------------------


def options():
    """What there is besides microgpt's own options."""
    parser = argparse.ArgumentParser(
        prog="train_torch",
        add_help=False,
        allow_abbrev=False,
        usage="train_torch.py [FILE] [options], these and those below",
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, ... (%(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="bfloat16 is mixed precision (%(default)s)",
    )
    parser.add_argument(
        "--accumulate",
        metavar="N",
        type=int,
        default=1,
        help="each process takes its share of a batch in N parts (%(default)s)",
    )
    parser.add_argument("--compile", action="store_true", help="by torch.compile")
    parser.add_argument(
        "--start",
        metavar="DIR",
        default="",
        help="begin with the model and tokens there, GPT-2's or microgpt's",
    )
    parser.add_argument(
        "--random",
        action="store_true",
        help="with --start: its shape and tokens, but random parameters",
    )
    parser.add_argument(
        "--peak",
        metavar="X",
        type=float,
        default=0.0,
        help="what a device can do, in TFLOP/s (0: measured)",
    )
    return parser


def from_directory(start, anew):
    """A kind of TorchTrainer that begins with what is in a directory, or with its shape."""

    class Begun(TorchTrainer):
        def __init__(self, model, tokenizer, documents, config, executor=None):
            model, tokenizer = GPT.load(start), microgpt.load_tokenizer(start)
            if anew:
                model = GPT(model.config, seed=config.seed)
            super().__init__(model, tokenizer, documents, config, executor)

    return Begun


SHAPE = (
    "--n-layer",
    "--n-head",
    "--n-embd",
    "--block-size",
    "--tokenizer",
    "--vocab-size",
)


def main(argv=None):
    """microgpt's command line with a TorchTrainer; returns the exit status."""
    parser, rank = options(), int(os.environ.get("RANK", 0))  # torchrun sets it

    def wrong(message):
        return (
            1 if rank else f"train_torch: {message}"
        )  # the first process speaks for all

    parser.error = lambda message: sys.exit(wrong(message))
    ours, rest = parser.parse_known_args(argv)
    given = {word.split("=")[0] for word in rest}
    if "--help" in given:
        parser.print_help()
    try:
        kind = TorchTrainer
        if ours.accumulate < 1 or not 0 <= ours.peak < math.inf:
            raise ValueError(
                f"accumulate is {ours.accumulate}, peak is {ours.peak:g}: must be a "
                "whole number from 1, and a number of TFLOP/s"
            )
        if ours.start:
            both = sorted(given.intersection((*SHAPE, "--resume")))
            if both:
                raise ValueError(
                    f"{both[0]} and --start {ours.start} exclude each other"
                )
            kind = from_directory(ours.start, ours.random)
        elif ours.random:
            raise ValueError("--random is for --start DIR")
        device = torch.device(ours.device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        torch.ones(1, device=device)  # is it there?
    except (ValueError, RuntimeError, AssertionError) as error:
        return wrong(str(error).splitlines()[0])
    GPT.initial_params = initial_params
    TorchTrainer.dtype, TorchTrainer.accumulate = ours.dtype, ours.accumulate
    TorchTrainer.compile, TorchTrainer.peak = ours.compile, ours.peak
    TorchTrainer.device = str(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    with contextlib.ExitStack() as stack:
        if rank:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            return microgpt.main(rest, kind)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
