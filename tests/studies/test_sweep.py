"""Sweeps: what runs, what is skipped and resumed, and what survives being killed."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from utils import ROOT

from mmsmca.datasets.shapes import make_shapes
from mmsmca.studies.record import StudyError
from mmsmca.studies.progress import SweepProgress
from mmsmca.studies.report.logs import last_evaluation, read_records
from mmsmca.studies.run_process import HeldError, TrainRun, end_run, hold, is_held, state
from mmsmca.studies.study import load_study
from mmsmca.studies.sweep import Resources, Sweep, check_runs, select

# Stands in for tools/train.py where training is not the point: writes MMEngine's files, takes up
# where they end, and does what the config's `behaviour` says.
TRAIN = """
import json, os, sys, time
from pathlib import Path
from mmengine.config import Config
cfg, work_dir = Config.fromfile(sys.argv[1]), Path(sys.argv[3])
print('GPUs', repr(os.environ['CUDA_VISIBLE_DEVICES']), flush=True)
if cfg.behaviour == 'fail':
    print('out of cheese')
    sys.exit(3)
if cfg.behaviour == 'killed':
    os.kill(os.getpid(), 9)
checkpoint = work_dir / 'last_checkpoint'
first = int(checkpoint.read_text()) + 1 if checkpoint.exists() else 1
folder = work_dir / str(time.time_ns()) / 'vis_data'
folder.mkdir(parents=True)
with (folder / 'scalars.json').open('w') as log:
    for step in range(first, 5):
        print(json.dumps(dict(step=step, iter=step, loss=4 / step, time=0.5)), file=log, flush=True)
        checkpoint.write_text(str(step))
        if cfg.behaviour == 'wait' and step == 2 and not (work_dir / 'go').exists():
            time.sleep(1000)
    print(json.dumps({'coco/bbox_mAP': 0.25, 'step': 4}), file=log)
"""


def fake_study(folder, *behaviours, seeds=(0,)):
    """A study with one experiment per behaviour of ``TRAIN``."""
    (folder / 'train.py').write_text(TRAIN)
    (folder / 'config.py').write_text(
        "behaviour = 'work'\nmodel = dict()\ntrain_cfg = dict(type='IterBased', max_iters=4)"
    )
    experiments = [
        dict(name=name, config='config.py', cfg_options=dict(behaviour=name)) for name in behaviours
    ]
    path = folder / 'study.py'
    content = dict(baseline=behaviours[0], seeds=list(seeds), experiments=experiments)
    path.write_text('\n'.join(f'{key} = {value!r}' for key, value in content.items()))
    return path


def fake_sweep(folder, *behaviours, seeds=(0,), **resources):
    study = load_study(fake_study(folder, *behaviours, seeds=seeds))
    sweep = Sweep(study, folder / 'work', folder / 'train.py', Resources(**resources))
    sweep.work_dir.mkdir(exist_ok=True)
    return sweep


def finish(sweep, retry_failed=False):
    """Run what is pending, one after the other; returns the runs started."""
    started = sweep.pending(retry_failed)
    for run in started:
        sweep.start(run)
        wait_for(lambda: sweep.collect())
    return [run.dir_name for run in started]


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.05)


def states(sweep):
    return {run.experiment.name: sweep.state_of(run) for run in sweep.study.runs}


def scalars_of(sweep):
    return sorted(path.parent.parent.name for path in sweep.work_dir.glob('*/*/*/vis_data/*.json'))


def test_failed_and_killed_runs(tmp_path):
    sweep = fake_sweep(tmp_path, 'work', 'fail', 'killed')
    assert len(finish(sweep)) == 3
    assert states(sweep) == {'work': 'finished', 'fail': 'failed', 'killed': 'cut off'}

    run, failed, _ = (sweep.dir_of(run) for run in sweep.study.runs)
    result = json.loads((run / 'result.json').read_text())
    assert result['metrics'] == {'coco/bbox_mAP': 0.25}
    assert result['iterations'] == 4
    assert result['peak_memory_mib'] > 1
    record = json.loads((run / 'run.json').read_text())
    assert record['experiment'] == 'work'
    assert record['seed'] == 0
    (attempt,) = record['attempts']
    assert attempt['versions']['torch'].startswith('2.')
    assert attempt['hardware']['cores'] == os.cpu_count()
    assert attempt['exit_code'] == 0
    failure = json.loads((failed / 'failed.json').read_text())
    assert failure['exit_code'] == 3
    assert failure['log_tail'][-1] == 'out of cheese'
    # No GPU was asked for, so none is seen.
    assert "GPUs ''" in (run / 'train.log').read_text()

    # Again: what is finished stays, what failed waits to be asked for.
    times = scalars_of(sweep)
    assert [name.split('/')[0] for name in finish(sweep)] == ['killed']
    assert [name.split('/')[0] for name in finish(sweep, retry_failed=True)] == ['fail', 'killed']
    assert scalars_of(sweep) == times


def test_changed_definition_is_another_run(tmp_path):
    sweep = fake_sweep(tmp_path, 'work')
    sweep.write_study()
    finish(sweep)
    (old,) = [run.dir_name for run in sweep.study.runs]
    path = tmp_path / 'config.py'
    path.write_text(path.read_text().replace('max_iters=4', 'max_iters=5'))
    again = Sweep(
        load_study(tmp_path / 'study.py'), sweep.work_dir, sweep.train_script, Resources()
    )
    again.write_study()
    (new,) = [run.dir_name for run in again.study.runs]
    assert new != old
    assert again.pending(retry_failed=False) == list(again.study.runs)
    study = json.loads((sweep.work_dir / 'study.json').read_text())
    assert [run['dir'] for run in study['runs']] == [new]
    assert state(sweep.work_dir / old) == 'finished'


def test_gpus_side_by_side(tmp_path, monkeypatch):
    """Every run of those at work has GPUs of its own, of those that the sweep may use."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3,5,GPU-7')
    sweep = fake_sweep(tmp_path, 'work', 'wait', jobs=2, gpus_per_job=2)
    sweep.train_script.write_text(
        'import os; from pathlib import Path\n'
        "Path(os.environ['OUT']).joinpath(os.environ['CUDA_VISIBLE_DEVICES']).touch()"
    )
    out = tmp_path / 'seen'
    out.mkdir()
    monkeypatch.setenv('OUT', str(out))
    first, second = sweep.study.runs
    command = sweep._command(tmp_path / 'config.py', tmp_path)
    assert command[1:5] == ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    assert command[-2:] == ['--launcher', 'pytorch']
    sweep._command = lambda *paths: [sys.executable, str(sweep.train_script)]
    sweep.start(first)
    sweep.start(second)
    wait_for(lambda: sweep.collect() is not None and not sweep.active)
    assert sorted(path.name for path in out.iterdir()) == ['2,3', '5,GPU-7']


def test_gpus_of_a_run_make_another_run(tmp_path):
    """Twice the GPUs are twice the batch."""
    path = fake_study(tmp_path, 'work')
    (one,), (two,) = load_study(path).runs, load_study(path, world_size=2).runs
    assert one.id != two.id
    assert (one.world_size, two.world_size) == (1, 2)


def test_a_process_is_no_slurm_job(tmp_path, monkeypatch):
    """The number in job.json is a process of this machine: never Slurm's to look up or cancel."""
    sweep = fake_sweep(tmp_path, 'killed')
    finish(sweep)
    (run,) = sweep.study.runs
    job = json.loads((sweep.dir_of(run) / 'job.json').read_text())
    assert job['cluster'] == 'local'
    sweep.resources = Resources(slurm=dict(time=1))
    asked = []
    monkeypatch.setattr('submitit.SlurmJob', lambda *args: asked.append(args))

    class Submitted:
        job_id = '7'

        def submit(self, *args):
            return self

    sweep._executor = lambda run: Submitted()
    sweep.start(run)
    assert not asked
    assert json.loads((sweep.dir_of(run) / 'job.json').read_text()) == dict(id='7', cluster='slurm')


def test_what_is_killed_again_and_again_has_failed(tmp_path):
    sweep = fake_sweep(tmp_path, 'killed')
    for expected in ('cut off', 'cut off', 'failed'):
        finish(sweep)
        assert states(sweep) == {'killed': expected}
    failure = json.loads((sweep.dir_of(sweep.study.runs[0]) / 'failed.json').read_text())
    assert 'killed 3 times by SIGKILL' in failure['log_tail'][-1]
    attempts = json.loads((sweep.dir_of(sweep.study.runs[0]) / 'run.json').read_text())['attempts']
    assert [attempt['exit_code'] for attempt in attempts] == [-9, -9, -9]


def test_interrupting_ends_runs_of_an_earlier_sweep(tmp_path):
    first = fake_sweep(tmp_path, 'wait')
    (run,) = first.study.runs
    first.start(run)
    wait_for(lambda: (first.dir_of(run) / 'last_checkpoint').exists())
    second = fake_sweep(tmp_path, 'wait')
    second.start(run)
    assert second.active == {run.id: None}
    assert second.cancel() == []
    wait_for(lambda: second.collect())
    assert states(second) == {'wait': 'cut off'}
    assert not end_run(first.dir_of(run))


def test_before_a_time_limit_a_run_is_queued_again(tmp_path):
    """What submitit calls as Slurm's limit nears: the training ends, and is to go on later."""
    sweep = fake_sweep(tmp_path, 'wait')
    (run,) = sweep.study.runs
    sweep.start(run)
    run_dir = sweep.dir_of(run)
    wait_for(lambda: (run_dir / 'last_checkpoint').exists())
    train = TrainRun(run_dir, ['true'], tmp_path)
    again = train.checkpoint()
    assert again.function is train
    wait_for(lambda: sweep.collect())
    assert states(sweep) == {'wait': 'cut off'}


def test_help_imports_nothing_that_takes_long():
    code = (
        "import runpy, sys; sys.argv = ['sweep.py', '--help']\n"
        f"try: runpy.run_path({str(ROOT / 'tools/sweep.py')!r}, run_name='__main__')\n"
        "except SystemExit: print('imported', {'torch', 'mmdet', 'mmsmca'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == 'imported set()', done.stderr


def test_a_report_needs_nothing_of_unix_alone(tmp_path):
    """Windows has neither of the modules."""
    code = (
        "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        f"import runpy; runpy.run_path({str(ROOT / 'tools/report.py')!r}, run_name='report')"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_part_of_a_study(tmp_path):
    study = load_study(fake_study(tmp_path, 'work', 'fail', seeds=(0, 1, 2)))
    part = select(study, ['fail'], [2, 0])
    assert [(run.experiment.name, run.seed) for run in part.runs] == [('fail', 0), ('fail', 2)]
    assert select(study, None, None).runs == study.runs
    with pytest.raises(StudyError, match='--only wrok: .*work, fail'):
        select(study, ['wrok'], None)
    with pytest.raises(StudyError, match=r'--seeds 4: .*\[0, 1, 2\]'):
        select(study, None, [4])


def test_time_left_of_a_run_by_epochs(tmp_path):
    """At the end of the second of four epochs, two are left."""
    path = fake_study(tmp_path, 'wait')
    (tmp_path / 'config.py').write_text(
        "behaviour = 'work'\nmodel = dict()\ntrain_cfg = dict(by_epoch=True, max_epochs=4)"
    )
    sweep = Sweep(load_study(path), tmp_path / 'work', tmp_path / 'train.py', Resources())
    (run,) = sweep.study.runs
    folder = sweep.dir_of(run) / '1' / 'vis_data'
    folder.mkdir(parents=True)
    records = [
        dict(step=i, iter=i, epoch=1 + (i - 1) // 10, loss=1.0, time=2.0) for i in range(1, 21)
    ]
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
    progress = SweepProgress(sweep)
    assert progress._figures(run, 'running')[3] == '0:00:40'


def test_logs_of_finished_runs_are_read_once(tmp_path, monkeypatch):
    sweep = fake_sweep(tmp_path, 'work')
    finish(sweep)
    progress = SweepProgress(sweep)
    progress.__rich__()

    def read(folder):
        raise AssertionError('read again')

    monkeypatch.setattr('mmsmca.studies.progress.read_records', read)
    progress.__rich__()


def test_run_left_by_a_killed_sweep_is_waited_for(tmp_path):
    """The sweep is gone, its run goes on: the next sweep neither doubles nor forgets it."""
    first = fake_sweep(tmp_path, 'wait')
    (run,) = first.study.runs
    first.start(run)
    run_dir = first.dir_of(run)
    wait_for(lambda: (run_dir / 'last_checkpoint').exists())

    second = fake_sweep(tmp_path, 'wait')
    (pending,) = second.pending(retry_failed=False)
    second.start(pending)
    assert second.active == {run.id: None}
    assert states(second) == {'wait': 'running'}
    assert second.collect() == []
    assert len(scalars_of(second)) == 1

    # Its processes killed, it is cut off, and resumes from its last checkpoint.
    (run_dir / 'go').touch()
    for process in holders(run_dir):
        os.kill(process, signal.SIGKILL)
    wait_for(lambda: second.collect())
    assert states(second) == {'wait': 'cut off'}
    finish(second)
    assert states(second) == {'wait': 'finished'}
    assert len(scalars_of(second)) == 2
    steps = [
        json.loads(line).get('iter')
        for path in sorted(run_dir.glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 4, None]


def holders(run_dir):
    """The processes that train in a folder."""
    found = []
    for process in Path('/proc').iterdir():
        if process.name.isdigit():
            try:
                arguments = (process / 'cmdline').read_bytes().split(b'\0')
            except OSError:
                continue
            if str(run_dir).encode() in arguments:
                found.append(int(process.name))
    return found


def test_a_run_is_never_trained_twice_at_once(tmp_path):
    with hold(tmp_path / '.lock'):
        assert is_held(tmp_path)
        with pytest.raises(HeldError, match=rf'held by process {os.getpid()} on .+, since 20'):
            TrainRun(tmp_path, ['false'], tmp_path)()
    assert not is_held(tmp_path)
    assert not (tmp_path / 'failed.json').exists()


def test_progress(tmp_path):
    sweep = fake_sweep(tmp_path, 'work', 'fail', 'new')
    for run in sweep.study.runs[:2]:
        sweep.start(run)
        wait_for(lambda: sweep.collect())
    console = Console(width=120, record=True, file=open(os.devnull, 'w'))
    console.print(SweepProgress(sweep))
    text = console.export_text()
    assert '1 finished, 1 failed, 1 new' in text
    (line,) = (line for line in text.splitlines() if ' work ' in line)
    assert [cell.strip() for cell in line.strip('│').split('│')] == [
        'work',
        '0',
        'finished',
        '4/4',
        '1.00',
        '0.250',
        '',
    ]


def test_broken_log_lines_are_left_out(tmp_path):
    folder = tmp_path / '1' / 'vis_data'
    folder.mkdir(parents=True)
    lines = [
        '{"step": 7, "iter": 7, "loss": 1.0}',
        '{"coco/bbox_mAP": 0.5, "step": 7}',
        '{"coco/bbox_mAP": 0.',
    ]
    (folder / 'scalars.json').write_text('\n'.join(lines))
    assert last_evaluation(read_records(tmp_path)) == ({'coco/bbox_mAP': 0.5}, 7)


SLURM = {
    'sbatch': """#!{python}
import os, subprocess, sys
folder, script = os.environ['FAKE_SLURM'], sys.argv[-1]
job = str(len(os.listdir(folder)) + 1)
state = os.path.join(folder, job)
open(state, 'w').write('RUNNING')
environment = dict(os.environ, SLURM_JOB_ID=job, SLURM_NTASKS='1', SLURM_LOCALID='0',
    SLURM_PROCID='0', SLURM_NODEID='0', SLURM_JOB_NUM_NODES='1', SLURM_JOB_NODELIST='here')
# submitit renames its files once it knows the job's number; then the job starts.
jobs = os.path.dirname(os.path.abspath(script))
later = (
    f'while [ ! -e {{jobs}}/{{job}}_submitted.pkl ]; do sleep 0.05; done; '
    f'bash {{jobs}}/{{job}}_submission.sh && echo COMPLETED > {{state}} || echo FAILED > {{state}}'
)
subprocess.Popen(['sh', '-c', later], env=environment, stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL, start_new_session=True)
print('Submitted batch job', job)
""",
    'srun': """#!{python}
import os, sys
command = sys.argv[1:]
while command[0].startswith('-'):
    option = command.pop(0)
    if option in ('--output', '--error'):
        command.pop(0)
os.execvp(command[0], command)
""",
    'sacct': """#!{python}
import os
folder = os.environ['FAKE_SLURM']
print('JobID|State')
for job in os.listdir(folder):
    print(f'{{job}}|{{open(os.path.join(folder, job)).read().strip()}}')
""",
}


def test_slurm(tmp_path, monkeypatch):
    """Against stand-ins for Slurm's commands: what is submitted, with which parameters."""
    commands, queue = tmp_path / 'bin', tmp_path / 'queue'
    commands.mkdir()
    queue.mkdir()
    for name, text in SLURM.items():
        path = commands / name
        path.write_text(text.format(python=sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv('PATH', f'{commands}:{os.environ["PATH"]}')
    monkeypatch.setenv('FAKE_SLURM', str(queue))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    sweep = fake_sweep(tmp_path, 'work', gpus_per_job=1, slurm=dict(partition='gpu', time=90))
    finish(sweep)
    assert states(sweep) == {'work': 'finished'}
    (script,) = (sweep.work_dir / 'jobs').glob('*_submission.sh')
    text = script.read_text()
    assert '#SBATCH --partition=gpu' in text
    assert '#SBATCH --time=90' in text
    assert '#SBATCH --gpus-per-node=1' in text
    assert '#SBATCH --job-name=work-0' in text


def test_models_and_data_are_checked_first(tmp_path):
    data = tmp_path / 'data'
    make_shapes(data, num_train=2, num_val=2, size=64)
    good = real_study(tmp_path, data)
    check_runs(load_study(good))
    for wrong, message in (
        ({'model.decoder.num_layer': 3}, 'small: model: .*num_layer'),
        ({'train_dataloader.dataset.data_root': 'nowhere/'}, 'small: .*nowhere'),
    ):
        with pytest.raises(StudyError, match=message):
            check_runs(load_study(real_study(tmp_path, data, **wrong)))


def real_study(folder, data, **options):
    """One experiment, two seeds of eight iterations each, with a checkpoint after every second."""
    config = ROOT / 'configs/head_to_head/smca_r18_head-to-head_shapes.py'
    cfg_options = {
        **{
            f'{loader}_dataloader.{key}': value
            for loader in ('train', 'val', 'test')
            for key, value in (
                ('dataset.data_root', f'{data}/'),
                ('num_workers', 0),
                ('persistent_workers', False),
            )
        },
        'val_evaluator.ann_file': f'{data}/annotations/instances_val.json',
        'test_evaluator.ann_file': f'{data}/annotations/instances_val.json',
        'train_dataloader.batch_size': 2,
        'train_cfg.max_iters': 8,
        'train_cfg.val_interval': 8,
        'default_hooks.checkpoint.interval': 2,
        'default_hooks.logger.interval': 1,
        **options,
    }
    path = folder / 'real.py'
    experiment = dict(name='small', config=str(config), cfg_options=cfg_options)
    path.write_text(f"baseline = 'small'\nseeds = [0, 1]\nexperiments = [{experiment!r}]")
    return path


def sweep_command(*arguments):
    return [sys.executable, str(ROOT / 'tools/sweep.py'), *map(str, arguments)]


def call(*arguments):
    return subprocess.run(sweep_command(*arguments), capture_output=True, text=True)


def test_killed_sweep_of_real_runs(tmp_path):
    """SIGKILL for the sweep and everything it started, in the middle of a run; then once more."""
    data, work_dir = tmp_path / 'data', tmp_path / 'work'
    make_shapes(data, num_train=4, num_val=2, size=64)
    study = real_study(tmp_path, data)
    plan = call(study, '--work-dir', work_dir, '--dry-run')
    assert plan.returncode == 0, plan.stderr
    assert plan.stdout.count('new') == 2
    assert not work_dir.exists()

    sweep = subprocess.Popen(sweep_command(study, '--work-dir', work_dir), start_new_session=True)
    wait_for(lambda: list(work_dir.glob('small/*/iter_2.pth')))

    second = call(study, '--work-dir', work_dir)
    assert second.returncode == 2
    assert f'held by process {sweep.pid} on' in second.stderr

    sweep.kill()
    for run_dir in work_dir.glob('small/*'):
        for process in holders(run_dir):
            os.kill(process, signal.SIGKILL)
    sweep.wait()

    again = call(study, '--work-dir', work_dir)
    assert again.returncode == 0, again.stdout + again.stderr
    runs = sorted(path.parent for path in work_dir.glob('small/*/result.json'))
    assert len(runs) == 2
    trained = []
    for run_dir in runs:
        assert json.loads((run_dir / 'result.json').read_text())['iterations'] == 8
        trained.append(len(list(run_dir.glob('*/vis_data/scalars.json'))))
    assert sorted(trained) == [1, 2]
    resumed = runs[trained.index(2)]
    (config,) = resumed.glob('*.py')
    assert "type='AtomicCheckpointHook'" in config.read_text()
    assert 'resumed epoch: 0, iter: ' in (resumed / 'train.log').read_text()

    logs = {path: path.stat().st_mtime_ns for path in work_dir.rglob('scalars.json')}
    assert call(study, '--work-dir', work_dir).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in work_dir.rglob('scalars.json')} == logs


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.py'], 'none.py: no such file'),
        (['STUDY', '--gpus-per-job', '1'], 'this machine has 0'),
        (['STUDY', '--slurm', 'partition'], "--slurm: 'partition' is not KEY=VALUE"),
        (['STUDY', '--slurm', 'partitoin=a', 'time=9'], 'did you mean partition?'),
        (['STUDY', '--slurm', 'partition=a'], '--slurm: time is missing'),
        (['STUDY', '--only', 'wrok'], '--only wrok'),
        (['STUDY', '--jobs', '0'], '0 is less than 1'),
        (['STUDY'], 'work: configs'),
    ],
)
def test_wrong_commands(arguments, message, tmp_path):
    study = fake_study(tmp_path, 'work')
    work_dir = tmp_path / 'work'
    arguments = [study if argument == 'STUDY' else argument for argument in arguments]
    done = subprocess.run(
        sweep_command(*arguments, '--work-dir', work_dir),
        capture_output=True,
        text=True,
        env=dict(os.environ, CUDA_VISIBLE_DEVICES=''),
    )
    assert done.returncode == 2
    if message != 'work: configs':
        assert message in done.stderr
    else:
        # No detector in the config: refused before anything is written.
        assert 'error: work: ' in done.stderr
    assert not work_dir.exists()
