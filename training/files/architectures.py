"""How published LoRA files name each base model."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ArchitectureFacts:
    """How published files name a base model.

    Attributes:
        base_version: `ss_base_model_version`.
        architecture: ModelSpec's id of the base model; a LoRA's own is this and `/lora`.
        implementation: Where the model's reference code is, or `diffusers`.
        resolution: Side in pixels of the square the base model was made for.
        network_module: kohya's module that reads such a LoRA.
        is_v2: Whether it is one of Stable Diffusion 2, which `ss_v2` tells apart.
        predicts_noise_or_v: Whether ModelSpec wants its prediction type told; models of flow have none.
    """

    base_version: str
    architecture: str
    implementation: str
    resolution: int = 1024
    network_module: str = "networks.lora"
    is_v2: bool = False
    predicts_noise_or_v: bool = False


_STABILITY = "https://github.com/Stability-AI/generative-models"
_SD1 = ArchitectureFacts("sd_v1", "stable-diffusion-v1", "diffusers", 512, predicts_noise_or_v=True)
_SD2 = ArchitectureFacts(
    "sd_v2", "stable-diffusion-v2-512", "diffusers", 512, is_v2=True, predicts_noise_or_v=True
)
_SDXL = ArchitectureFacts(
    "sdxl_base_v1-0", "stable-diffusion-xl-v1-base", _STABILITY, predicts_noise_or_v=True
)
_FLUX = ArchitectureFacts(
    "flux1", "flux-1-dev", "https://github.com/black-forest-labs/flux", network_module="networks.lora_flux"
)
_LUMINA = "https://github.com/Alpha-VLLM/Lumina-Image-2.0"
_CHROMA = replace(_FLUX, base_version="chroma", architecture="chroma",
                  implementation="https://huggingface.co/lodestones/Chroma")

# By the host's name of the model's config class. The names on the right are those of kohya's sd-scripts and
# musubi-tuner where they have one, of the model's own publisher otherwise.
_PUBLISHED = {
    "SD15": _SD1,
    "SD15_instructpix2pix": _SD1,
    "SD20": _SD2,
    "SD21UnclipL": _SD2,
    "SD21UnclipH": _SD2,
    "SDXL": _SDXL,
    "SDXL_instructpix2pix": _SDXL,
    "SSD1B": _SDXL,
    "Segmind_Vega": _SDXL,
    "KOALA_700M": _SDXL,
    "KOALA_1B": _SDXL,
    "SDXLRefiner": replace(_SDXL, base_version="sdxl_refiner_v1-0",
                           architecture="stable-diffusion-xl-v1-refiner"),
    "SD3": ArchitectureFacts("sd3", "stable-diffusion-3", "diffusers", network_module="networks.lora_sd3"),
    "Flux": _FLUX,
    "FluxInpaint": _FLUX,
    "FluxSchnell": replace(_FLUX, architecture="flux-1-schnell"),
    "Flux2": ArchitectureFacts("flux2", "flux-2-dev", "https://github.com/black-forest-labs/flux2"),
    "Chroma": _CHROMA,
    "ChromaRadiance": replace(_CHROMA, base_version="chroma_radiance", architecture="chroma-radiance"),
    "Lumina2": ArchitectureFacts("lumina2", "lumina-2", _LUMINA, network_module="networks.lora_lumina"),
    "ZImage": ArchitectureFacts("zimage", "z-image", "https://github.com/Tongyi-MAI/Z-Image"),
    "QwenImage": ArchitectureFacts("qwen_image", "Qwen-Image", "https://github.com/QwenLM/Qwen-Image"),
    "HunyuanImage21": ArchitectureFacts(
        "hunyuan-image-2.1", "hunyuan-image-2.1", "https://github.com/Tencent-Hunyuan/HunyuanImage-2.1", 2048,
        "networks.lora_hunyuan_image",
    ),
}


def architecture_facts(config_class: str, *, v_prediction: bool = False) -> ArchitectureFacts:
    """Look up how published files name a base model.

    Args:
        config_class: Class name of the host's `model.model_config`, such as `SDXL`.
        v_prediction: Whether the model predicts v; tells SD2's 768 from its 512 model.

    Returns:
        The published names, or for a model we know none of, names made of the class's own.
    """
    facts = _PUBLISHED.get(config_class)
    if facts is None:
        name = config_class.lower()
        return ArchitectureFacts(name, name, "https://github.com/comfyanonymous/ComfyUI")
    if v_prediction and facts.base_version in ("sd_v1", "sd_v2"):
        facts = replace(facts, base_version=f"{facts.base_version}_v")
        if facts.is_v2:
            facts = replace(facts, architecture="stable-diffusion-v2-768-v", resolution=768)
    return facts
