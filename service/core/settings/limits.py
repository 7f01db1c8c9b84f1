"""Settings: what one call may cost, and how many calls may wait."""

from typing import Literal

from pydantic import BaseModel, Field


class LimitSettings(BaseModel):
    """What one call may cost, and how many calls may wait."""

    max_image_bytes: int = Field(
        default=20 * 2**20,
        ge=2**10,
        le=2**29,  # gRPC takes messages of twice as many bytes, and counts them in 31 bits
        description="Largest encoded picture that is accepted, in bytes.",
    )
    max_image_pixels: int = Field(
        default=64_000_000,
        ge=1,
        le=2**31,
        description="Largest picture that is accepted, in pixels as its header states them. A confidence map of that "
        "size takes two bytes per pixel: 64 million are 122 MiB of the 384 that calls have.",
    )
    max_image_side_px: int = Field(
        default=16_384,
        ge=1,
        le=65_535,
        description="Longest side of a picture that is accepted, in pixels as its header states them. Run lengths of a "
        "mask need memory for (side of the model's map) x (width of the picture): 520 x 16,384 are 8 MiB per array.",
    )
    decode_megabytes: int = Field(
        default=384,
        ge=16,
        le=2**20,
        description="Memory, in MiB, that all decoding threads of a gateway process take together. A decode waits "
        "while others take it. A picture that needs more alone is refused. Bytes per pixel: JPEG 4, 8 if it is turned "
        "upright, 3 to 6 more with several scans; PNG, BMP and GIF 2 to 12, TIFF also two of its strips or tiles, TIFF "
        "with floats or 32 bits per colour 32 to 104, WebP 16. Models without antialiasing need 7 at least, models "
        "with `alpha` white or black 13 more for pictures with transparency. With `reduced_decoding`, JPEGs need a "
        "quarter or less. 384 MiB are a JPEG of 50 million pixels turned upright, or four of 12 million at once. 384 "
        "of the 1024 MiB of the gateway container leave 256 for shared memory and 384 for the process and calls.",
    )
    max_decode_pixels: int = Field(
        default=1_000_000_000,
        ge=1,
        le=2**40,
        description="Most pixels that the decoder goes through for one picture: pixels x scans of a JPEG (10 scans "
        "are usual in a progressive one), all strips or tiles of a TIFF. A scan counts as 65,536 pixels at least, a "
        "strip or tile as 4096, a byte of it as 2/3, a pixel or byte of a BMP with run lengths as 200. A billion take "
        "3 s on one core at most.",
    )
    max_decode_seconds: float = Field(
        default=60.0,
        ge=1,
        le=3600,
        description="A picture that has been decoded for longer makes the server not ready, and after twice that "
        "time /livez fails. What is accepted (max_decode_pixels) takes 3 s on one core at most; 60 leave twenty times "
        "that for slow or shared cores.",
    )
    image_formats: tuple[Literal["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"], ...] = Field(
        default=("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"),
        min_length=1,
        description="Formats of pictures that are accepted. Fewer formats leave fewer decoders to attack.",
    )
    default_deadline_seconds: float = Field(
        default=10.0, gt=0, le=3600, description="Deadline of calls that have none."
    )
    max_deadline_seconds: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="Longest deadline of a call; later deadlines are brought forward to it. Old connections stay open "
        "for so long, so that their calls finish.",
    )
    upload_timeout_seconds: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Time in which a request must arrive whole. A call whose request has not ends with "
        "DEADLINE_EXCEEDED. 20 MiB in 30 s are 6 Mbit/s.",
    )
    max_inflight_megabytes: int = Field(
        default=96,
        ge=1,
        le=2**20,
        description="Encoded pictures, in MiB, that wait to be decoded in a gateway process at once. Further requests "
        "are refused; one picture is always accepted. Part of `call_megabytes`.",
    )
    call_megabytes: int = Field(
        default=224,
        ge=16,
        le=2**20,
        description="Memory, in MiB, that a gateway process may take for calls beyond what it has after its start, "
        "decoding apart: requests that arrive, pictures that wait, replies, connections. It is measured. Over it, "
        "new requests wait a second and are then refused, and the oldest ones that have not arrived whole are cut off, "
        "with TOO_MANY_REQUESTS. 224 of the 1024 MiB of the gateway container, with 384 of `decode_megabytes`, 256 of "
        "`shm_megabytes` and 112 of the process itself, leave 48.",
    )
    max_call_pictures: int = Field(
        default=64,
        ge=1,
        le=4096,
        description="Most pictures in one `Batch` call. Each counts as a request in all limits.",
    )
    max_call_pictures_megabytes: int = Field(
        default=32,
        ge=1,
        le=1023,  # gRPC counts the bytes of messages in 31 bits
        description="Most MiB of all pictures of one `Batch` call, of all its answers, and of the answers of a "
        "`Stream` call that its caller has not taken. Part of `call_megabytes`.",
    )
    max_streams: int = Field(
        default=64,
        ge=1,
        le=100_000,
        description="`Stream` calls that are open at once in one gateway process. Further ones are refused.",
    )
    max_stream_pictures: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="Pictures of one `Stream` call without a sent answer. The server reads the next one when an answer "
        "was sent. Each counts as a request in all limits.",
    )
    max_stream_seconds: float = Field(
        default=3600.0,
        gt=0,
        le=86_400,
        description="Longest time of a `Stream` call. Its pictures have the deadlines of other requests. A connection "
        "that has reached `max_connection_age_seconds` ends its streams before.",
    )
    stream_idle_seconds: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="A `Stream` call whose next picture does not arrive whole in this time ends with "
        "DEADLINE_EXCEEDED. The same if its caller does not take an answer in this time.",
    )
    max_inflight_requests: int = Field(
        default=512,
        ge=1,
        le=100_000,
        description="Inference requests that one gateway process handles at once, and requests that arrive at once. "
        "Further requests are refused. While another caller called in the last minute, those of a caller count twice, "
        "as in `max_queue`. Requests that arrive are counted by host, because their callers are not known yet.",
    )
    max_queue: int = Field(
        default=128,
        ge=1,
        le=100_000,
        description="Pictures that wait per gateway process, model and priority. Further pictures are refused. A "
        "caller alone may fill the queue. While another caller called in the last minute, the pictures of a caller "
        "that wait count twice: so it fills at most half of the queue, and several that flood get equal parts. Callers "
        "without credentials are told apart by their hosts.",
    )
    max_batch: int = Field(
        default=16, ge=1, le=64, description="Most pictures in one batch. The card of a model may set a lower limit."
    )
