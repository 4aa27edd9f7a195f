"""`sad cache`: one pass of a teacher over trajectories, kept on disk to train students from."""

from typing import Annotated

import typer


def command(
    teacher: Annotated[str, typer.Option(help="Folder of the teacher model.")],
    data: Annotated[list[str], typer.Option(help="Trajectories, JSON Lines (.gz too); may be given several times.")],
    out: Annotated[str, typer.Option(help="Folder of the cache, or a URL that fsspec can open.")],
    top_k: Annotated[int, typer.Option(help="Likeliest tokens to keep per supervised token.")] = 64,
    dtype: Annotated[str, typer.Option(help="Of their log-probabilities: uint16 or float32.")] = "uint16",
    format: Annotated[str | None, typer.Option(help="How the files are written, where they do not say.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens beyond it are cut; as in the training.")] = 512,
    vocab_size: Annotated[
        int | None,
        typer.Option(help="Columns of the softmax, where the student's head has less than the teacher's."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder of the tokenizer, if the teacher's has none.")] = None,
    teacher_dtype: Annotated[str, typer.Option(help="auto (as saved), float32, bfloat16, float16.")] = "auto",
    teacher_quantization: Annotated[str | None, typer.Option(help="8bit or 4bit, by bitsandbytes.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens that the teacher reads at once, padding included.")] = 4096,
    use_cpu: Annotated[bool, typer.Option("--use-cpu", help="Run on the CPU though there is a GPU.")] = False,
) -> None:
    """Keep what a teacher says of trajectories on disk, so that students train without it.

    Supervised tokens only: the likeliest tokens with their log-probabilities, the probability of all others, the entropy.
    A run that was stopped goes on when the command is given again; other files of trajectories are added to the cache.
    """
    from sad.teacher_cache.make import CacheOptions, make_cache

    options = CacheOptions(
        teacher=teacher,
        data=data,
        out=out,
        top_k=top_k,
        dtype=dtype,
        format=format,
        max_length=max_length,
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        teacher_dtype=teacher_dtype,
        teacher_quantization=teacher_quantization,
        batch_tokens=batch_tokens,
        use_cpu=use_cpu,
    )
    make_cache(options, say=typer.echo)
