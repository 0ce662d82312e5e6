"""What media intake touches: vLLM's media connector, media IO and content parsers."""

from __future__ import annotations

from .entry import Home, VllmSignature

_MEDIA = "vllm.multimodal.media"
MEDIA_SIGNATURES: tuple[VllmSignature, ...] = (
    VllmSignature("vllm.utils.registry", "ExtensionManager.register", ("name",)),
    VllmSignature("vllm.utils.registry", "ExtensionManager.load", ("cls_name",)),
    VllmSignature(_MEDIA, "MEDIA_CONNECTOR_REGISTRY"),
    VllmSignature(_MEDIA, "MediaConnector.load_from_url", ("url", "media_io", "fetch_timeout")),
    VllmSignature(_MEDIA, "MediaConnector.load_from_url_async", ("url", "media_io", "fetch_timeout")),
    VllmSignature(_MEDIA, "MediaConnector._get_cached_bytes", ("url",)),
    VllmSignature(_MEDIA, "MediaConnector._put_cached_bytes", ("url", "data")),
    VllmSignature(_MEDIA, "MediaWithBytes", ("media", "original_bytes", "io_config")),
    VllmSignature(_MEDIA, "ImageMediaIO.load_bytes", ("data",)),
    VllmSignature(_MEDIA, "ImageMediaIO._convert_image_mode", ("image",)),
    VllmSignature(_MEDIA, "VideoMediaIO.load_base64", ("media_type", "data")),
    VllmSignature(_MEDIA, "MediaDecodedBudget.charge", ("decoded_bytes",), since="0.33"),
    VllmSignature(_MEDIA, "MediaDecodedBudget.reserve", ("max_bytes",), since="0.33"),
    VllmSignature(_MEDIA, "MediaDecodedBudget.settle", ("reserved", "decoded_bytes"), since="0.33"),
    VllmSignature("vllm.connections", "MediaRequestDownloadBudget.charge", ("size",), since="0.33"),
    VllmSignature("vllm.multimodal.image", "open_image", ("fp",)),
    VllmSignature("vllm.multimodal.video", "VideoBackend.compute_frames_index_to_sample", ("source", "target")),
    VllmSignature("vllm.multimodal.video_decoders.opencv", "OpenCVVideoBackendMixin.open_video_capture", ("data",)),
)

_CHAT = "vllm.renderers.chat_utils"
_PROCESSING = "vllm.multimodal.processing"


def _moved(module: str, name: str, parameters: tuple[str, ...] = ()) -> VllmSignature:
    """A name that 0.32 keeps in one module, and 0.33 in a module of the package that took its place."""
    return VllmSignature(f"{_CHAT}.{module}", name, parameters, older=(Home(_CHAT, name, parameters),))


CONTENT_SIGNATURES: tuple[VllmSignature, ...] = (
    _moved("content_parser", "BaseMultiModalContentParser.parse_image", ("image_url", "uuid")),
    _moved("content_parser", "BaseMultiModalContentParser.parse_video", ("video_url", "uuid")),
    _moved("content_parser", "BaseMultiModalContentParser.parse_audio", ("audio_url", "uuid")),
    _moved("content_parser", "BaseMultiModalContentParser.parse_input_audio", ("input_audio", "uuid")),
    _moved("content_parser", "BaseMultiModalContentParser.parse_prompt_embeds", ("data",)),
    _moved("content_parser", "MultiModalContentParser", ("tracker",)),
    _moved("content_parser", "AsyncMultiModalContentParser", ("tracker",)),
    _moved("chat_message", "MM_PARSER_MAP"),
    VllmSignature(
        f"{_CHAT}.chat_message",
        "parse_chat_message_content_part",
        ("part", "mm_parser", "mm_tracker"),
        older=(Home(_CHAT, "_parse_chat_message_content_part", ("part", "mm_parser")),),
    ),
    VllmSignature(_CHAT, "MultiModalItemTracker.add", ("modality", "item")),
    VllmSignature(_CHAT, "MultiModalItemTracker.resolve_items", ()),
    VllmSignature(_CHAT, "AsyncMultiModalItemTracker.resolve_items", ()),
    VllmSignature(_PROCESSING, "BaseProcessingInfo.validate_num_items", ("modality", "num_items")),
    VllmSignature(_PROCESSING, "InputProcessingContext.call_hf_processor", ("hf_processor", "data", "kwargs")),
)
