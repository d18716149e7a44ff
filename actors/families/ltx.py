"""Family `ltx`: diffusers' LTX-Video components behind the step contract, for large checkpoints and the house model.

A model is a directory as diffusers lays it out (transformer/, text_encoder/, tokenizer/, scheduler/, vae/), safetensors
only. With the same noise the numbers are those of `diffusers.LTXPipeline` (0.42, pipelines/ltx/pipeline_ltx.py), whose
order of arithmetic is kept; where a model departs from that pipeline, its `Departures` say so.
Shapes: B batch, C latent channels, F H W the latent grid, S tokens, D channels of a token, L words, E width of a word.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.checkpoint import fingerprint_of, read_checkpoint, write_checkpoint
from actors.contract import Json, ShotSpec
from actors.model_dir import Departures, ModelDir
from actors.schedulers import advance, load_scheduler, load_scheduler_state, save_scheduler, started
from cluster.errors import DamagedCheckpoint, InvalidSpec, OutOfMemory

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

MAX_WORDS = 128  # what the pipeline pads captions to
CACHED_PROMPTS = 256
# For decoders that take a timestep (LTX-Video 0.9.1 and later) as the diffusers documentation of LTX-Video has them.
DECODE_TIMESTEP, DECODE_NOISE_SCALE = 0.05, 0.025
COMPONENTS = ("transformer", "text_encoder", "tokenizer", "scheduler", "vae")


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """A prompt as the denoiser reads it: embeddings (1, L, E) and masks (1, L); `negative` is None without guidance."""

    embeds: Tensor
    mask: Tensor
    negative: tuple[Tensor, Tensor] | None


@dataclass(kw_only=True, slots=True)
class State:
    """One take on its way. `latents` are packed tokens, float32 (1, S, D); `grid` is their frames, height, width."""

    spec: ShotSpec
    conditioning: Conditioning
    latents: Tensor
    grid: tuple[int, int, int]
    scheduler: Any
    generator: torch.Generator
    index: int = 0


class LtxFamily:
    """The components of one model, loaded; see `actors.contract.Family`."""

    def __init__(
        self,
        *,
        transformer: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        vae: Any,
        departures: Departures,
        weights: str,
        device: str,
        num_threads: int,
    ) -> None:
        self.transformer, self.text_encoder, self.tokenizer = transformer, text_encoder, tokenizer
        self.scheduler, self.vae, self.departures = scheduler, vae, departures
        self.weights, self.device, self.num_threads = weights, device, num_threads
        self.dtype = transformer.dtype
        self._prompts: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    # ---- text

    def encode(self, specs: Sequence[ShotSpec]) -> list[Conditioning]:
        """One batched pass over the prompts that have not been seen lately."""
        texts = [spec.prompt for spec in specs]
        texts += [spec.negative_prompt for spec in specs if spec.guidance_scale > 1]
        new = [text for text in dict.fromkeys(texts) if text not in self._prompts]
        if new:
            for text, pair in zip(new, self._embed(new), strict=True):
                self._prompts[text] = pair
        found = []
        for spec in specs:
            embeds, mask = self._recall(spec.prompt)
            negative = self._recall(spec.negative_prompt) if spec.guidance_scale > 1 else None
            found.append(Conditioning(embeds=embeds, mask=mask, negative=negative))
        while len(self._prompts) > CACHED_PROMPTS:
            self._prompts.popitem(last=False)
        return found

    def _recall(self, text: str) -> tuple[Tensor, Tensor]:
        self._prompts.move_to_end(text)
        return self._prompts[text]

    def _embed(self, texts: list[str]) -> list[tuple[Tensor, Tensor]]:
        import torch

        length = min(MAX_WORDS, self.tokenizer.model_max_length)
        words = self.tokenizer(
            texts,
            padding="max_length",
            max_length=length,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        mask = words.attention_mask.bool().to(self.device)
        with torch.inference_mode(), _memory():
            if self.departures.masked_text:
                embeds = self.text_encoder(words.input_ids.to(self.device), attention_mask=mask.long())[0]
            else:
                embeds = self.text_encoder(words.input_ids.to(self.device))[0]
        embeds = embeds.to(dtype=self.text_encoder.dtype)
        return [(embeds[i : i + 1].clone(), mask[i : i + 1].clone()) for i in range(len(texts))]

    # ---- denoise

    def start(self, spec: ShotSpec, conditioning: Conditioning) -> State:
        """Noise from the seed, drawn on the CPU so that every device starts alike. Raises InvalidSpec."""
        import numpy as np
        import torch
        from diffusers.utils.torch_utils import randn_tensor

        space, time = self.vae.spatial_compression_ratio, self.vae.temporal_compression_ratio
        patch, patch_t = self.transformer.config.patch_size, self.transformer.config.patch_size_t
        for name in ("width_px", "height_px"):
            if getattr(spec, name) % (space * patch):
                raise InvalidSpec(f"{name} must be divisible by {space * patch}, got {getattr(spec, name)}", field=name)
        frames = (spec.num_frames - 1) // time + 1
        height, width = spec.height_px // space, spec.width_px // space
        if frames % patch_t:
            raise InvalidSpec(f"num_frames {spec.num_frames} makes {frames} latent frames", field="num_frames")
        generator = torch.Generator("cpu").manual_seed(spec.seed)
        channels = self._latent_channels()
        latents = randn_tensor((1, channels, frames, height, width), generator=generator, dtype=torch.float32)
        latents = _pack(latents, patch, patch_t).to(self.device).contiguous()  # as a loaded one is
        facts = self.scheduler.config
        mu = _shift_of_length(
            frames * height * width,
            facts.get("base_image_seq_len", 256),
            facts.get("max_image_seq_len", 4096),
            facts.get("base_shift", 0.5),
            facts.get("max_shift", 1.15),
        )
        sigmas = np.linspace(1.0, 1 / spec.num_steps, spec.num_steps)
        return State(
            spec=spec,
            conditioning=conditioning,
            latents=latents,
            grid=(frames // patch_t, height // patch, width // patch),
            scheduler=started(self.scheduler, spec.num_steps, device=self.device, sigmas=sigmas, mu=mu),
            generator=generator,
        )

    def _latent_channels(self) -> int:
        extra = self.vae.config.position_channels if self.departures.positions else 0
        return int(self.transformer.config.in_channels - extra)

    def step(self, states: Sequence[State]) -> None:
        """One denoise step for each; states of one shape share one pass of the network."""
        import torch

        assert len({(state.grid, state.spec.fps) for state in states}) == 1, "states of one shape only"
        rows = [(state, *state.conditioning.negative) for state in states if state.conditioning.negative]
        num_free = len(rows)
        rows += [(state, state.conditioning.embeds, state.conditioning.mask) for state in states]
        with torch.inference_mode(), _memory():
            output = self._denoise(
                torch.cat([state.latents for state, _, _ in rows]),
                torch.cat([embeds for _, embeds, _ in rows]),
                torch.cat([mask for _, _, mask in rows]),
                torch.stack([state.scheduler.timesteps[state.index] for state, _, _ in rows]),
                states[0].grid,
                float(states[0].spec.fps),
            )
            free = iter(output[:num_free])
            for state, text in zip(states, output[num_free:], strict=True):
                seen = text[None]
                if state.conditioning.negative:
                    without = next(free)[None]
                    seen = without + state.spec.guidance_scale * (seen - without)
                if self.departures.prediction == "sample":
                    seen = (state.latents - seen) / state.scheduler.sigmas[state.index]
                state.latents = advance(state.scheduler, seen, state.index, state.latents, state.generator)
                state.index += 1

    def _denoise(
        self, tokens: Tensor, embeds: Tensor, mask: Tensor, timesteps: Tensor, grid: tuple[int, int, int], fps: float
    ) -> Tensor:
        """The network's output (B, S, D), float32."""
        import torch

        space, time = self.vae.spatial_compression_ratio, self.vae.temporal_compression_ratio
        if self.departures.positions:
            places = self.vae.position_features(*grid).to(tokens)
            tokens = torch.cat([tokens, places.expand(len(tokens), -1, -1)], dim=2)
        output: Tensor = self.transformer(
            hidden_states=tokens.to(embeds.dtype),
            encoder_hidden_states=embeds,
            timestep=timesteps,
            encoder_attention_mask=mask,
            num_frames=grid[0],
            height=grid[1],
            width=grid[2],
            rope_interpolation_scale=(time / fps, space, space),
            return_dict=False,
        )[0]
        return output.float()

    def predict(self, noisy: Tensor, sigmas: Tensor, prompts: Sequence[str]) -> Tensor:
        """The clean latents that the network sees in noisy ones, without guidance; for training codecs.

        `noisy` (B, C, F, H, W), normalised, at noise levels `sigmas` (B,) -> the same shape, float32.
        """
        import torch

        patch, patch_t = self.transformer.config.patch_size, self.transformer.config.patch_size_t
        frames, height, width = noisy.shape[2:]
        grid = (frames // patch_t, height // patch, width // patch)
        pairs = self._embed(list(prompts))
        tokens = _pack(noisy, patch, patch_t)
        with torch.inference_mode():
            output = self._denoise(
                tokens,
                torch.cat([embeds for embeds, _ in pairs]),
                torch.cat([mask for _, mask in pairs]),
                sigmas * self.scheduler.config.num_train_timesteps,
                grid,
                1.0,
            )
            if self.departures.prediction != "sample":
                output = tokens - sigmas.view(-1, 1, 1) * output
        return _unpack(output, grid, patch, patch_t).clone()

    def progress(self, state: State) -> tuple[int, int]:
        return state.index, state.spec.num_steps

    # ---- checkpoints

    @cached_property
    def _fingerprint(self) -> Json:
        return fingerprint_of(
            family="ltx", weights=self.weights, device=self.device, dtype=self.dtype, num_threads=self.num_threads
        )

    def save(self, state: State) -> bytes:
        """All that the next step reads, as safetensors bytes; a sha256 over them and a fingerprint are inside."""
        given = state.conditioning
        tensors, scheduler = save_scheduler(state.scheduler, self.scheduler)
        tensors |= {
            "latents": state.latents,
            "generator": state.generator.get_state(),
            "embeds": given.embeds,
            "mask": given.mask,
        }
        if given.negative:
            tensors |= {"negative_embeds": given.negative[0], "negative_mask": given.negative[1]}
        facts = {
            "index": state.index,
            "grid": list(state.grid),
            "scheduler": scheduler,
        }
        return write_checkpoint(tensors, facts, {**self._fingerprint, "spec": state.spec.to_json()})

    def load(self, data: bytes, spec: ShotSpec) -> State:
        """The inverse of `save`. Raises DamagedCheckpoint for damaged bytes, another spec or fingerprint."""
        import torch

        tensors, facts = read_checkpoint(data, {**self._fingerprint, "spec": spec.to_json()})
        try:
            held = {name: tensor.to(self.device) for name, tensor in tensors.items() if name != "generator"}
            negative = (held["negative_embeds"], held["negative_mask"]) if "negative_mask" in held else None
            generator = torch.Generator("cpu")
            generator.set_state(tensors["generator"])
            frames, height, width = facts["grid"]
            return State(
                spec=spec,
                conditioning=Conditioning(embeds=held["embeds"], mask=held["mask"], negative=negative),
                latents=held["latents"],
                grid=(frames, height, width),
                scheduler=load_scheduler_state(self.scheduler, tensors, facts["scheduler"], device=self.device),
                generator=generator,
                index=facts["index"],
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DamagedCheckpoint(f"the checkpoint lacks or garbles {error}") from error

    # ---- decode

    def decode(self, state: State) -> Iterator[np.ndarray]:
        """Chunks of frames, uint8 (frames, height_px, width_px, 3); a codec that streams yields as it goes."""
        import torch

        first = self.departures.still_frame if state.spec.num_frames == 1 else 0
        wanted = range(first, first + state.spec.num_frames)
        seen = 0
        with _memory():
            for chunk in self._pictures(self.latents(state), state):
                kept = chunk[max(0, wanted.start - seen) : max(0, wanted.stop - seen)]
                seen += len(chunk)
                if len(kept):
                    frames: np.ndarray = kept.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).cpu().numpy()
                    yield frames
                if seen >= wanted.stop:
                    return

    def latents(self, state: State) -> Tensor:
        """What the codec decodes: (1, C, F, H, W), not normalised, float32."""
        import torch

        with torch.inference_mode():
            patch, patch_t = self.transformer.config.patch_size, self.transformer.config.patch_size_t
            return _denormalise(_unpack(state.latents, state.grid, patch, patch_t), self.vae)

    def _pictures(self, latents: Tensor, state: State) -> Iterator[Tensor]:
        """Chunks (frames, 3, height, width) in [0, 1]."""
        import torch
        from diffusers.utils.torch_utils import randn_tensor

        if hasattr(self.vae, "decode_frames"):
            with torch.inference_mode():
                yield from self.vae.decode_frames(latents)
            return
        with torch.inference_mode():
            latents = latents.to(state.conditioning.embeds.dtype)
            timestep = None
            if self.vae.config.timestep_conditioning:
                generator = torch.Generator("cpu")
                generator.set_state(state.generator.get_state())  # a second decode draws the same
                noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
                timestep = torch.tensor([DECODE_TIMESTEP], device=latents.device, dtype=latents.dtype)
                scale = torch.tensor([DECODE_NOISE_SCALE], device=latents.device, dtype=latents.dtype)
                latents = (1 - scale) * latents + scale * noise
            video = self.vae.decode(latents.to(self.vae.dtype), timestep, return_dict=False)[0]
            yield (video[0].permute(1, 0, 2, 3).float() / 2 + 0.5).clamp(0, 1)


def load(model_dir: Path, *, device: str, dtype: str, num_threads: int) -> LtxFamily:
    """Loads a diffusers directory, safetensors only, without the network. Raises DamagedWeights."""
    import torch
    from diffusers import LTXVideoTransformer3DModel
    from transformers import AutoTokenizer, T5EncoderModel

    torch.set_num_threads(num_threads)
    wanted = getattr(torch, dtype)
    model = ModelDir.open(model_dir, COMPONENTS)
    safe = {"use_safetensors": True, "local_files_only": True}
    with model.component("transformer") as folder:
        transformer: Any = LTXVideoTransformer3DModel
        transformer = transformer.from_pretrained(folder, torch_dtype=wanted, **safe)
    with model.component("text_encoder") as folder:
        text_encoder: Any = T5EncoderModel
        text_encoder = text_encoder.from_pretrained(folder, dtype=wanted, **safe)
    with model.component("tokenizer") as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with model.component("vae") as folder:
        codec = model.codec_class()
        vae = codec.from_pretrained(folder, torch_dtype=getattr(codec, "decode_dtype", wanted), **safe)
    return LtxFamily(
        transformer=transformer.to(device).eval(),
        text_encoder=text_encoder.to(device).eval(),
        tokenizer=tokenizer,
        scheduler=load_scheduler(model.path / "scheduler"),
        vae=vae.to(device).eval(),
        departures=model.departures,
        weights=model.revision,
        device=device,
        num_threads=num_threads,
    )


@contextmanager
def _memory() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"the accelerator has no memory left: {error}", remedy="use a larger one") from error


def _shift_of_length(num_tokens: int, base: int, longest: int, base_shift: float, max_shift: float) -> float:
    """The shift of the noise levels grows with the number of tokens. Source: `calculate_shift` of the pipeline."""
    slope = (max_shift - base_shift) / (longest - base)
    return num_tokens * slope + (base_shift - slope * base)


def _pack(latents: Tensor, patch: int, patch_t: int) -> Tensor:
    """(B, C, F, H, W) -> tokens (B, S, C * patch_t * patch * patch)."""
    b, _, f, h, w = latents.shape
    x = latents.reshape(b, -1, f // patch_t, patch_t, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4, 7).flatten(1, 3)


def _unpack(tokens: Tensor, grid: tuple[int, int, int], patch: int, patch_t: int) -> Tensor:
    """The inverse of `_pack`; `grid` counts tokens."""
    x = tokens.reshape(len(tokens), *grid, -1, patch_t, patch, patch)
    return x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _denormalise(latents: Tensor, vae: Any) -> Tensor:
    mean = vae.latents_mean.view(1, -1, 1, 1, 1).to(latents.device, latents.dtype)
    std = vae.latents_std.view(1, -1, 1, 1, 1).to(latents.device, latents.dtype)
    raw: Tensor = latents * std / vae.config.scaling_factor + mean
    return raw
