"""Trains the house video model: python -m pipelines.house.train --data DIR --out DIR [--resume] [--minutes 67]

`--data` is what `python -m pipelines.house.latents` writes; shards that appear later are picked up. Rectified flow with
prediction of the clean latents: x_s = (1 - s) z + s n, the network sees x_s and predicts z, and the error is weighted
by 1 / max(s, 0.2) and by what a channel is worth in the picture. Many channels a token need it (Li and He 2025,
arXiv:2511.13720). One sample in eight is pure noise (s = 1): there only the caption can tell what to draw, so it is
learned first.

Weights are bfloat16 with float32 masters; matrices are trained by Muon, the rest by AdamW; OUT/weights holds the moving
average as a diffusers directory, OUT/state.pt all that `--resume` needs, OUT/sheet-*.png what it draws meanwhile.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast

from actors.families.codecs.paper import CODE_CHANNELS, PaperCodec
from pipelines.house.sheet import draw_sheet
from pipelines.house.text import MAX_WORDS, TEXT_WIDTH, new_text_encoder, new_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a training run is made of."""

    minutes: float
    batch_size: int = 64
    width: int = 320
    heads: int = 5
    layers: int = 5
    matrix_lr: float = 2e-3
    other_lr: float = 1.5e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_share: float = 0.3  # of the minutes, at the end, with a falling learning rate
    ema: float = 0.998
    caption_dropout: float = 0.1
    pure_noise_share: float = 0.125
    shift: float = 2.5
    seed: int = 5


class Clips:
    """The training set in memory: latents (N, C, F, H, W) float16 and tokenised captions (N, variants, MAX_WORDS)."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self._folder, self._tokenizer = folder, tokenizer
        self._seen: set[str] = set()
        self.latents: list[Tensor] = []
        self.words: list[Tensor] = []
        self.ends: list[int] = []
        self.look()

    def look(self) -> None:
        """Takes in the shards that have appeared."""
        for path in sorted(self._folder.glob("clips-*.safetensors")):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            lines = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
            captions = [line.split("\t") for line in lines]
            flat = [text for each in captions for text in each]
            ids = self._tokenizer(
                flat, padding="max_length", truncation=True, max_length=MAX_WORDS, return_tensors="pt"
            ).input_ids
            self.latents.append(load_file(path)["latents"])
            self.words.append(ids.view(len(captions), -1, MAX_WORDS))
            self.ends.append((self.ends[-1] if self.ends else 0) + len(captions))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(latents (size, C, F, H, W) float32, words (size, MAX_WORDS))."""
        picks = rng.integers(len(self), size=size)
        latents, words = [], []
        for pick in picks:
            shard = int(np.searchsorted(self.ends, pick, side="right"))
            row = int(pick) - (self.ends[shard - 1] if shard else 0)
            latents.append(self.latents[shard][row])
            words.append(self.words[shard][row, int(rng.integers(self.words[shard].shape[1]))])
        return torch.stack(latents).float(), torch.stack(words)


class Net(nn.Module):
    """Text encoder and denoiser, trained as one."""

    def __init__(self, codec: PaperCodec, num_words: int, plan: Plan) -> None:
        super().__init__()
        torch.manual_seed(plan.seed)
        channels = codec.latent_channels
        denoiser: Any = LTXVideoTransformer3DModel
        self.transformer = denoiser(
            in_channels=channels + codec.config.position_channels,
            out_channels=channels,
            num_attention_heads=plan.heads,
            attention_head_dim=plan.width // plan.heads,
            cross_attention_dim=plan.width,
            num_layers=plan.layers,
            caption_channels=TEXT_WIDTH,
        )
        self.text_encoder = new_text_encoder(num_words, seed=plan.seed)
        with torch.no_grad():
            self.transformer.proj_out.weight.zero_()
            for block in self.transformer.transformer_blocks:
                block.scale_shift_table[[2, 5]] = 0.5  # gates: open from the start

    def forward(
        self, noisy: Tensor, positions: Tensor, sigma: Tensor, words: Tensor, rope: tuple[float, ...]
    ) -> Tensor:
        """`noisy` (B, C, F, H, W) and words (B, L) -> predicted clean latents, same shape."""
        b, c, f, h, w = noisy.shape
        mask = (words != 0).long()
        mask[:, 0] = 1
        text = self.text_encoder(input_ids=words, attention_mask=mask)[0]
        tokens = noisy.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens, positions.expand(b, -1, -1)], dim=2).to(self.transformer.dtype)
        out: Tensor = self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=text,
            timestep=sigma * 1000,
            encoder_attention_mask=mask,
            num_frames=f,
            height=h,
            width=w,
            rope_interpolation_scale=rope,
            return_dict=False,
        )[0]
        return out.float().transpose(1, 2).reshape(b, c, f, h, w)


def channel_weights(codec: PaperCodec, latents: Tensor) -> Tensor:
    """What an error in a channel is worth: between its share of the picture and one for all; (1, C, 1, 1, 1)."""
    weights = codec.latents_std**1.5
    weights[-CODE_CHANNELS:] = 0
    power = latents.float().pow(2).mean(dim=(0, 2, 3, 4))
    weights /= (weights * power).mean()
    codes = power[-CODE_CHANNELS:].mean() * CODE_CHANNELS / len(power)
    weights[-CODE_CHANNELS:] = 0.15 / float(codes)
    shaped: Tensor = weights.view(1, -1, 1, 1, 1)
    return shaped


class Trainer:
    """One run: masters, optimisers, moving average, the batch stream."""

    def __init__(self, plan: Plan, *, data: Path, out: Path, device: str) -> None:
        self.plan, self.out, self.device = plan, out, device
        self.tokenizer = new_tokenizer()
        self.codec = PaperCodec.from_pretrained(data / "vae")
        self.clips = Clips(data, self.tokenizer)
        self.net = Net(self.codec, len(self.tokenizer), plan)
        self.masters = {name: p.detach().clone().float().to(device) for name, p in self.net.named_parameters()}
        self.average = {name: p.clone() for name, p in self.masters.items()}
        self.net.to(device=device, dtype=torch.bfloat16)
        shape = self.clips.latents[0].shape[2:]
        self.positions = self.codec.position_features(*shape)[None].to(device)
        self.weights = channel_weights(self.codec, self.clips.latents[0]).to(device)
        self.rope = (self.codec.temporal_compression_ratio / 12, *[self.codec.spatial_compression_ratio] * 2)
        matrices = [
            p
            for name, p in self.masters.items()
            if p.ndim == 2
            and ("blocks" in name or "encoder.block" in name)
            and "table" not in name
            and "relative" not in name
        ]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.masters.values() if id(p) not in chosen]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, lr=plan.matrix_lr, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=plan.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.peaks = (plan.matrix_lr, plan.other_lr)
        self.step_index, self.spent_s = 0, 0.0
        self.rng = np.random.default_rng(plan.seed)

    def _rate(self) -> float:
        progress = self.spent_s / 60 / self.plan.minutes
        falling = min(1.0, max(0.0, (1 - progress) / self.plan.decay_share))
        return min(1.0, (self.step_index + 1) / self.plan.warmup_steps) * max(falling, 0.01)

    def train_step(self) -> float:
        plan = self.plan
        clean, words = self.clips.batch(plan.batch_size, self.rng)
        words[torch.from_numpy(self.rng.random(len(words)) < plan.caption_dropout)] = self.empty_words()
        words = words[:, : int((words != 0).sum(1).max())]
        u = torch.from_numpy(self.rng.random(len(clean), dtype=np.float32))
        sigma = plan.shift * u / (1 + (plan.shift - 1) * u)
        sigma[torch.from_numpy(self.rng.random(len(clean)) < plan.pure_noise_share)] = 1.0
        noise = torch.from_numpy(self.rng.standard_normal(clean.shape, dtype=np.float32))
        clean, words, sigma, noise = (x.to(self.device) for x in (clean, words, sigma, noise))
        level = sigma.view(-1, 1, 1, 1, 1)
        predicted = self.net((1 - level) * clean + level * noise, self.positions, sigma, words, self.rope)
        error = ((predicted - clean).pow(2) * self.weights).mean(dim=(1, 2, 3, 4))
        loss = (error / sigma.clamp(min=0.2)).mean()
        loss.backward()
        self._apply()
        return float(loss.detach())

    @torch.no_grad()
    def _apply(self) -> None:
        params = dict(self.net.named_parameters())
        for name, master in self.masters.items():
            grad = params[name].grad
            master.grad = None if grad is None else grad.float()
            params[name].grad = None
        torch.nn.utils.clip_grad_norm_(list(self.masters.values()), 1.0)
        rate = self._rate()
        for optimiser, peak in zip(self.optimisers, self.peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * rate
            optimiser.step()
        names = list(self.masters)
        masters = [self.masters[name] for name in names]
        torch._foreach_copy_([params[name] for name in names], masters)
        keep = min(self.plan.ema, (self.step_index + 1) / (self.step_index + 20))
        torch._foreach_lerp_([self.average[name] for name in names], masters, 1 - keep)
        self.step_index += 1

    def empty_words(self) -> Tensor:
        empty = torch.zeros(MAX_WORDS, dtype=torch.long)
        empty[0] = int(self.tokenizer.eos_token_id or 1)
        return empty

    @contextmanager
    def averaged(self) -> Iterator[Net]:
        """The net with the moving average in place of the newest weights."""
        params = dict(self.net.named_parameters())
        with torch.no_grad():
            for name, value in self.average.items():
                params[name].copy_(value)
        self.net.eval()
        yield self.net
        self.net.train()
        with torch.no_grad():
            for name, value in self.masters.items():
                params[name].copy_(value)

    def save(self) -> None:
        state = {
            "masters": self.masters,
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step_index": self.step_index,
            "spent_s": self.spent_s,
            "rng": json.dumps(self.rng.bit_generator.state),
        }
        partial = self.out / "state.partial"
        torch.save(state, partial)
        partial.rename(self.out / "state.pt")
        with self.averaged() as net:
            export(net, self.codec, self.tokenizer, self.out / "weights")

    def resume(self) -> None:
        state = torch.load(self.out / "state.pt", map_location=self.device, weights_only=True)
        if names := set(state["masters"]) ^ set(self.masters):
            raise ValueError(f"{self.out} was trained with another plan: {sorted(names)[:3]}")
        params = dict(self.net.named_parameters())
        with torch.no_grad():
            for name, value in state["masters"].items():
                self.masters[name].copy_(value)
                self.average[name].copy_(state["average"][name])
                params[name].copy_(value)
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step_index, self.spent_s = state["step_index"], state["spent_s"]
        self.rng.bit_generator.state = json.loads(state["rng"])

    def run(self, *, save_every_s: float, sheet_every_s: float) -> None:
        """Trains until the minutes are spent; saves and draws a sheet on the way."""
        began = last_save = last_sheet = last_log = time.monotonic()
        before, logged, losses = self.spent_s, self.step_index, []
        while self.spent_s < self.plan.minutes * 60:
            losses.append(self.train_step())
            now = time.monotonic()
            self.spent_s = before + now - began
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"loss is {losses[-1]} at step {self.step_index}")
            if now - last_log > 20:
                speed = (self.step_index - logged) * self.plan.batch_size / (now - last_log)
                log.info(
                    "step %d  minute %.1f  loss %.4f  %.1f clips/s  %d clips on disk  rate %.2f",
                    self.step_index,
                    self.spent_s / 60,
                    sum(losses) / len(losses),
                    speed,
                    len(self.clips),
                    self._rate(),
                )
                last_log, logged, losses = now, self.step_index, []
                self.clips.look()
            if now - last_sheet > sheet_every_s:
                with self.averaged() as net, torch.no_grad():
                    draw_sheet(net, self, self.out / f"sheet-{self.step_index:06d}.png")
                last_sheet = time.monotonic()
            if now - last_save > save_every_s:
                self.save()
                last_save = time.monotonic()
        self.save()


def export(net: Net, codec: PaperCodec, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes a diffusers directory in bfloat16, safetensors only."""
    net.transformer.save_pretrained(folder / "transformer")
    net.text_encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    codec.save_pretrained(folder / "vae")
    scheduler: Any = FlowMatchEulerDiscreteScheduler
    scheduler(shift=2.0).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "LTXPipeline",
        "_diffusers_version": net.transformer.config["_diffusers_version"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "LTXVideoTransformer3DModel"],
        "vae": ["actors.families.codecs.paper", "PaperCodec"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    departures = {"prediction": "sample", "masked_text": True, "positions": True, "still_frame": 12}
    (folder / "farm.json").write_text(json.dumps(departures, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--minutes", type=float, default=67)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    plan = Plan(minutes=args.minutes, batch_size=args.batch)
    trainer = Trainer(plan, data=args.data, out=args.out, device=args.device)
    if args.resume:
        trainer.resume()
    log.info("%d clips, %.2f M parameters", len(trainer.clips), sum(p.numel() for p in trainer.masters.values()) / 1e6)
    # The fused CPU attention's backward pass took a third of a step at 64 tokens; the plain one a tenth.
    with sdpa_kernel(SDPBackend.MATH):
        trainer.run(save_every_s=240, sheet_every_s=300)


if __name__ == "__main__":
    main()
