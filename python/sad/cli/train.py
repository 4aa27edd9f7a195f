"""`sad train`: distil a student from a teacher on a trajectory file."""

from typing import Annotated

import typer

# Flags that are no option below are fields of SADConfig, which only `sad.training` knows.
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def command(
    context: typer.Context,
    teacher: Annotated[str | None, typer.Option(help="Folder of the teacher model.")] = None,
    student: Annotated[str | None, typer.Option(help="Folder of the student model.")] = None,
    data: Annotated[str | None, typer.Option(help="Trajectories to train on, JSON Lines (.gz too).")] = None,
    teacher_cache: Annotated[
        str | None, typer.Option(help="Cache of the teacher, made by sad cache, in place of --teacher.")
    ] = None,
    eval_data: Annotated[str | None, typer.Option(help="Trajectories to evaluate on.")] = None,
    format: Annotated[str | None, typer.Option(help="How they are written, where the file does not say.")] = None,
    from_config: Annotated[
        bool | None, typer.Option("--from-config/--no-from-config", help="Give the student random weights.")
    ] = None,
    teacher_dtype: Annotated[str | None, typer.Option(help="auto (as saved), float32, bfloat16, float16.")] = None,
    student_dtype: Annotated[str | None, typer.Option(help="Of the trained weights; float32 if not given.")] = None,
    teacher_quantization: Annotated[str | None, typer.Option(help="8bit or 4bit, by bitsandbytes.")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Train adapters of this rank on a frozen student.")] = None,
    lora_alpha: Annotated[
        float | None, typer.Option(help="Their scale times the rank; twice the rank if not given.")
    ] = None,
    lora_targets: Annotated[
        str | None, typer.Option(help="Layers with adapters: q_proj,v_proj; every linear one if not given.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the run, new or empty.")] = None,
    config: Annotated[str | None, typer.Option(help="YAML file of settings; flags win.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out from its last checkpoint.")] = False,
    fields: Annotated[bool, typer.Option("--fields", help="List the fields of SADConfig, and stop.")] = False,
) -> None:
    """Distil a student from a teacher on a trajectory file.

    Every field of sad.SADConfig, and so of transformers.TrainingArguments, is a flag too, such as
    --learning-rate 1e-4 --max-steps 1000 --bf16; see --fields. A file given with --config holds the same names.
    """
    from dataclasses import fields as fields_of

    from sad.errors import InputError
    from sad.training.cli_args import field_help, parse_flags, read_yaml
    from sad.training.run import RunOptions, distil
    from sad.training.run_folder import RunFolder

    if fields:
        typer.echo(field_help())
        return
    names = [*(item.name for item in fields_of(RunOptions)), "out"]
    flags = {name: value for name in names if (value := context.params[name]) is not None}
    flags |= parse_flags(context.args, context.params)
    if resume and config is not None:
        raise InputError("config", "no file with --resume", config, "The run keeps its settings; change some by flags.")
    if resume and out is not None:
        run = RunFolder(out)
        run.check_resumable()
        config = str(run.config)
    settings = (read_yaml(config, names) if config else {}) | flags
    out = settings.pop("out", None)
    if not isinstance(out, str):
        raise InputError("out", "a path", "nothing" if out is None else repr(out), "Give --out.")
    given = {name: settings.pop(name) for name in names if name in settings}
    options = RunOptions(**{"teacher": None, "student": None, "data": None} | given)
    if options.eval_data is not None:
        settings.setdefault("eval_strategy", "epoch")
    distil(options, settings, out, resume=resume, say=typer.echo)
