"""Family `wan`: diffusers' Wan classes behind the step contract, text to video of Wan 2.1 and 2.2.

A model is a directory as diffusers lays it out, safetensors only. With the same noise the numbers of a take alone are
those of `diffusers.WanPipeline` (0.42, pipelines/wan/pipeline_wan.py), bit for bit: its order of arithmetic is kept,
and guidance runs the network twice as it does. Wan 2.2 has a second transformer, which takes over below
`boundary_ratio` of the noise; both are resident.

A first frame is taken as `diffusers.WanImageToVideoPipeline` does, as bit-equal: by networks that read it in channels
beside the noise (Wan 2.2 I2V; they draw nothing without one), and by those that read the noise of each token (Wan 2.2
5B). Wan 2.1 I2V, which also sees it through CLIP, is refused when it is loaded.

Bits: a take alone is bit-exact on one processor, with one number of threads and one set of versions, stopped or not.
A take that shared a pass with others (`step` of several states) may differ in the last bits: it is `perceptual`.
Shapes: B batch, C latent channels, F H W the latent grid, L words, E width of a word.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.checkpoint import fingerprint_of, read_checkpoint, write_checkpoint
from actors.contract import Json, ShotSpec
from actors.model_dir import ModelDir
from actors.schedulers import advance, load_scheduler, load_scheduler_state, save_scheduler, started
from cluster.errors import DamagedCheckpoint, DamagedWeights, InvalidSpec, OutOfMemory

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

MAX_WORDS = 512  # what the pipeline pads captions to
CACHED_PROMPTS = 32  # 4 MB each for UMT5-XXL in bfloat16
COMPONENTS = ("tokenizer", "text_encoder", "transformer", "scheduler", "vae")


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """A prompt as the denoiser reads it: embeddings (1, L, E); `negative` is None without guidance.

    `frame` is a first frame in latents, normalised: (1, C, 1, H, W), or with its mask (1, 4 + C, F, H, W) where the
    network reads it beside the noise.
    """

    embeds: Tensor
    negative_embeds: Tensor | None
    frame: Tensor | None = None


@dataclass(kw_only=True, slots=True)
class State:
    """One take on its way. `latents` are (1, C, F, H, W), normalised."""

    spec: ShotSpec
    conditioning: Conditioning
    latents: Tensor
    scheduler: Any
    generator: torch.Generator
    index: int = 0


class WanFamily:
    """The components of one model, loaded; see `actors.contract.Family`."""

    def __init__(
        self,
        *,
        tokenizer: Any,
        text_encoder: Any,
        transformer: Any,
        transformer_2: Any | None,
        scheduler: Any,
        vae: Any,
        boundary_ratio: float | None,
        expand_timesteps: bool,
        weights: str,
        device: str,
        num_threads: int,
    ) -> None:
        self.tokenizer, self.text_encoder, self.scheduler, self.vae = tokenizer, text_encoder, scheduler, vae
        self.transformer, self.transformer_2, self.boundary_ratio = transformer, transformer_2, boundary_ratio
        self.expand_timesteps = expand_timesteps
        self.weights, self.device, self.num_threads = weights, device, num_threads
        self.dtype = transformer.dtype
        self._prompts: OrderedDict[str, Tensor] = OrderedDict()

    # ---- text

    def encode(self, specs: Sequence[ShotSpec]) -> list[Conditioning]:
        """Texts are embedded one by one: in a batch the bits of a prompt would depend on what the cache held before."""
        found = []
        for spec in specs:
            negative = self._embedded(spec.negative_prompt) if spec.guidance_scale > 1 else None
            found.append(Conditioning(embeds=self._embedded(spec.prompt), negative_embeds=negative))
        return found

    def encode_from(self, spec: ShotSpec, frame: np.ndarray) -> Conditioning:
        """Raises InvalidSpec for a frame of another size, or a model that reads none."""
        import torch

        if not (self.expand_timesteps or self._reads_beside):
            raise InvalidSpec("these weights take no first frame", field="first_frame", remedy="leave it out")
        if frame.shape != (spec.height_px, spec.width_px, 3):
            raise InvalidSpec(
                f"the first frame is no picture of {spec.width_px} x {spec.height_px}", field="first_frame"
            )
        self._check_grid(spec)
        still = torch.from_numpy(frame.astype("float32") / 255.0).permute(2, 0, 1)[None, :, None]
        still = (2.0 * still - 1.0).to(self.device)
        with torch.inference_mode(), _memory():
            if self.expand_timesteps:
                latents = self._in_latents(still)
            else:
                empty = still.new_zeros(1, 3, spec.num_frames - 1, spec.height_px, spec.width_px)
                latents = self._in_latents(torch.cat([still, empty], dim=2))
                mask = latents.new_zeros(1, self.vae.config.scale_factor_temporal, *latents.shape[2:])
                mask[:, :, 0] = 1
                latents = torch.cat([mask, latents], dim=1)
        return replace(self.encode([spec])[0], frame=latents)

    @property
    def _reads_beside(self) -> bool:
        return bool(self.transformer.config.in_channels > self.vae.config.z_dim)

    def _in_latents(self, video: Tensor) -> Tensor:
        """Of (1, 3, frames, height, width) from -1 to 1; float32, normalised, the likeliest of its distribution."""
        import torch

        shape = (1, -1, 1, 1, 1)
        latents: Tensor = self.vae.encode(video.to(self.vae.dtype)).latent_dist.mode().to(torch.float32)
        mean = torch.tensor(self.vae.config.latents_mean).view(shape).to(latents)
        return (latents - mean) * (1.0 / torch.tensor(self.vae.config.latents_std).view(shape).to(latents))

    def _embedded(self, text: str) -> Tensor:
        if text not in self._prompts:
            self._prompts[text] = self._embed(text)
            while len(self._prompts) > CACHED_PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(text)
        return self._prompts[text]

    def _embed(self, text: str) -> Tensor:
        """(1, L, E); the rows of padding are zeros, which the transformer attends to as it was trained."""
        import torch
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        clean: Any = prompt_clean
        words = self.tokenizer(
            [clean(text)],
            padding="max_length",
            max_length=MAX_WORDS,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = words.attention_mask.to(self.device)
        with torch.inference_mode(), _memory():
            embeds: Tensor = self.text_encoder(words.input_ids.to(self.device), mask).last_hidden_state
            embeds = embeds.to(self.text_encoder.dtype)
            embeds[:, int(mask.gt(0).sum()) :] = 0
            return embeds.to(self.dtype)

    # ---- denoise

    def start(self, spec: ShotSpec, conditioning: Conditioning) -> State:
        """Noise from the seed, drawn on the CPU so that all devices start alike. Raises InvalidSpec for a bad size, and
        where the network draws nothing without a first frame."""
        import torch

        if self._reads_beside and conditioning.frame is None:
            raise InvalidSpec("these weights need a first frame", field="first_frame", remedy="give one")
        generator = torch.Generator("cpu").manual_seed(spec.seed)
        noise_shape = (1, self.vae.config.z_dim, *self._check_grid(spec))
        noise = torch.randn(noise_shape, generator=generator, dtype=torch.float32)
        return State(
            spec=spec,
            conditioning=conditioning,
            latents=noise.to(self.device).contiguous(),  # as a loaded one is
            scheduler=started(self.scheduler, spec.num_steps, device=self.device),
            generator=generator,
        )

    def _check_grid(self, spec: ShotSpec) -> tuple[int, int, int]:
        """(F, H, W) of the latents. Raises InvalidSpec for what the grid cannot hold."""
        space, time = self.vae.config.scale_factor_spatial, self.vae.config.scale_factor_temporal
        patch_t, *patch = self.transformer.config.patch_size
        for name, side in (("height_px", patch[0]), ("width_px", patch[1])):
            if getattr(spec, name) % (space * side):
                raise InvalidSpec(f"{name} must be divisible by {space * side}, got {getattr(spec, name)}", field=name)
        frames = (spec.num_frames - 1) // time + 1
        if (spec.num_frames - 1) % time or frames % patch_t:
            raise InvalidSpec(
                f"num_frames must be 1 more than a multiple of {time}, got {spec.num_frames}", field="num_frames"
            )
        return frames, spec.height_px // space, spec.width_px // space

    def step(self, states: Sequence[State]) -> None:
        """One denoise step for each; states of one shape that are on one transformer share its passes."""
        import torch

        low = [state for state in states if self._is_low(state)]
        high = [state for state in states if not self._is_low(state)]
        with torch.inference_mode(), _memory():
            for transformer, group in ((self.transformer, high), (self.transformer_2, low)):
                if group:
                    self._step_together(transformer, group)

    def _is_low(self, state: State) -> bool:
        """Whether the noise of the coming step is below the boundary of the two transformers of Wan 2.2."""
        if self.boundary_ratio is None:
            return False
        boundary = self.boundary_ratio * self.scheduler.config.num_train_timesteps
        return bool(state.scheduler.timesteps[state.index] < boundary)

    def _step_together(self, transformer: Any, states: Sequence[State]) -> None:
        outputs = self._network(transformer, [(state, state.conditioning.embeds) for state in states])
        pairs = [(state, state.conditioning.negative_embeds) for state in states]
        guided = [(state, negative) for state, negative in pairs if negative is not None]
        free = dict(zip((id(state) for state, _ in guided), self._network(transformer, guided), strict=True))
        for state, output in zip(states, outputs, strict=True):
            if id(state) in free:
                output = free[id(state)] + state.spec.guidance_scale * (output - free[id(state)])
            state.latents = advance(state.scheduler, output, state.index, state.latents, state.generator)
            state.index += 1
            if self.expand_timesteps and state.index == state.spec.num_steps:
                state.latents = _begun_with(state)

    def _network(self, transformer: Any, rows: Sequence[tuple[State, Tensor]]) -> list[Tensor]:
        """What the network predicts for each state and its text, (1, C, F, H, W); one pass for all."""
        import torch

        if not rows:
            return []
        latents = torch.cat([self._read(state).to(self.dtype) for state, _ in rows])
        timesteps = torch.stack([state.scheduler.timesteps[state.index] for state, _ in rows])
        if self.expand_timesteps:  # Wan 2.2 5B reads the noise of each token; a first frame has none
            _, _, frames, height, width = latents.shape
            of_frame = ((height + 1) // 2) * ((width + 1) // 2)
            timesteps = timesteps.to(torch.float32)[:, None].repeat(1, frames * of_frame)
            for timestep, (state, _) in zip(timesteps, rows, strict=True):
                if state.conditioning.frame is not None:
                    timestep[:of_frame] = 0
        texts = torch.cat([embeds for _, embeds in rows])
        output: Tensor = transformer(
            hidden_states=latents, timestep=timesteps, encoder_hidden_states=texts, return_dict=False
        )[0]
        return [output[n : n + 1] for n in range(len(rows))]

    def _read(self, state: State) -> Tensor:
        """What the network reads of a take, (1, channels, F, H, W)."""
        import torch

        if self._reads_beside and state.conditioning.frame is not None:
            return torch.cat([state.latents, state.conditioning.frame], dim=1)
        return _begun_with(state)

    def progress(self, state: State) -> tuple[int, int]:
        return state.index, state.spec.num_steps

    # ---- checkpoints

    @cached_property
    def _fingerprint(self) -> Json:
        return fingerprint_of(
            family="wan", weights=self.weights, device=self.device, dtype=self.dtype, num_threads=self.num_threads
        )

    def save(self, state: State) -> bytes:
        """All that the next step reads, the history of the scheduler included."""
        tensors, scheduler = save_scheduler(state.scheduler, self.scheduler)
        tensors |= {
            "latents": state.latents,
            "generator": state.generator.get_state(),
            "embeds": state.conditioning.embeds,
        }
        if state.conditioning.negative_embeds is not None:
            tensors["negative_embeds"] = state.conditioning.negative_embeds
        if state.conditioning.frame is not None:
            tensors["frame"] = state.conditioning.frame
        facts = {"index": state.index, "scheduler": scheduler}
        return write_checkpoint(tensors, facts, {**self._fingerprint, "spec": state.spec.to_json()})

    def load(self, data: bytes, spec: ShotSpec) -> State:
        """The inverse of `save`. Raises DamagedCheckpoint if the bytes are damaged or of something else."""
        import torch

        tensors, facts = read_checkpoint(data, {**self._fingerprint, "spec": spec.to_json()})
        try:
            generator = torch.Generator("cpu")
            generator.set_state(tensors["generator"])
            negative, frame = tensors.get("negative_embeds"), tensors.get("frame")
            if (frame is None) != (spec.first_frame is None):
                raise DamagedCheckpoint("the checkpoint lacks its first frame")
            return State(
                spec=spec,
                conditioning=Conditioning(
                    embeds=tensors["embeds"].to(self.device),
                    negative_embeds=None if negative is None else negative.to(self.device),
                    frame=None if frame is None else frame.to(self.device),
                ),
                latents=tensors["latents"].to(self.device),
                scheduler=load_scheduler_state(self.scheduler, tensors, facts["scheduler"], device=self.device),
                generator=generator,
                index=facts["index"],
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DamagedCheckpoint(f"the checkpoint lacks or garbles {error}") from error

    # ---- decode

    def decode(self, state: State) -> Iterator[np.ndarray]:
        """Chunks of frames, uint8 (frames, height_px, width_px, 3), by latent frame: first 1, then 4 of each.

        Exactly what decoding whole gives: Wan's decoder is causal, and its own `decode` goes frame by frame over the
        same cache of features, which here belongs to the take. One chunk is in memory at a time.
        """
        import torch
        from diffusers.models.autoencoders import autoencoder_kl_wan

        wan: Any = autoencoder_kl_wan
        layers = sum(isinstance(layer, wan.WanCausalConv3d) for layer in self.vae.decoder.modules())
        features: list[Any] = [None] * layers
        with torch.inference_mode(), _memory():
            latents = self.vae.post_quant_conv(self._denormalised(state.latents))
        for n in range(latents.shape[2]):
            with torch.inference_mode(), _memory():
                video = self.vae.decoder(
                    latents[:, :, n : n + 1], feat_cache=features, feat_idx=[0], first_chunk=n == 0
                )
                if self.vae.config.patch_size is not None:
                    video = wan.unpatchify(video, patch_size=self.vae.config.patch_size)
                shown = (video.clamp(-1, 1)[0].permute(1, 2, 3, 0).float() / 2 + 0.5).clamp(0, 1)
                frames: np.ndarray = shown.mul(255).round().to(torch.uint8).cpu().numpy()
            yield frames

    def _denormalised(self, latents: Tensor) -> Tensor:
        import torch

        latents, shape = latents.to(self.vae.dtype), (1, -1, 1, 1, 1)
        mean = torch.tensor(self.vae.config.latents_mean).view(shape).to(latents)
        inverse_std = 1.0 / torch.tensor(self.vae.config.latents_std).view(shape).to(latents)
        return latents / inverse_std + mean


def _begun_with(state: State) -> Tensor:
    """The latents with the first frame in its place, for networks that are not handed it beside them."""
    frame = state.conditioning.frame
    if frame is None or frame.shape[1] != state.latents.shape[1]:
        return state.latents
    latents = state.latents.clone()
    latents[:, :, :1] = frame
    return latents


def load(model_dir: Path, *, device: str, dtype: str, num_threads: int) -> WanFamily:
    """Loads a diffusers directory, safetensors only, without the network; the VAE always in float32, as its authors do.

    Raises DamagedWeights with the part at fault.
    """
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import AutoTokenizer, UMT5EncoderModel

    torch.set_num_threads(num_threads)
    wanted = getattr(torch, dtype)
    model = ModelDir.open(model_dir, COMPONENTS)
    boundary_ratio = model.index.get("boundary_ratio")
    transformers: dict[str, Any] = {"transformer": None, "transformer_2": None}
    for name in transformers:
        if name == "transformer" or boundary_ratio is not None:
            with model.component(name) as folder:
                transformers[name] = _weights(WanTransformer3DModel, folder, torch_dtype=wanted).to(device).eval()
    if transformers["transformer"].config.image_dim is not None:
        raise DamagedWeights(
            "the first frame of Wan 2.1 I2V, seen through CLIP, is not supported", remedy="use Wan 2.2"
        )
    with model.component("text_encoder") as folder:
        text_encoder = _weights(UMT5EncoderModel, folder, dtype=wanted)
    with model.component("tokenizer") as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with model.component("vae") as folder:
        vae = _weights(AutoencoderKLWan, folder, torch_dtype=torch.float32)
    return WanFamily(
        tokenizer=tokenizer,
        text_encoder=text_encoder.to(device).eval(),
        scheduler=load_scheduler(model_dir / "scheduler"),
        vae=vae.to(device).eval(),
        boundary_ratio=boundary_ratio,
        expand_timesteps=bool(model.index.get("expand_timesteps")),
        weights=model.revision,
        device=device,
        num_threads=num_threads,
        **transformers,
    )


def _weights(kind: Any, folder: Path, **given: Any) -> Any:
    if not folder.is_dir():
        raise DamagedWeights(f"{folder} is missing")
    return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, **given)


@contextmanager
def _memory() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"the accelerator has no memory left: {error}", remedy="use a larger one") from error
