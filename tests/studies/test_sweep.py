"""Sweeps: what runs, what is skipped and resumed, and what survives being killed."""

import copy
import json
import multiprocessing
import os
import runpy
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from runs import real_study
from utils import ROOT

from mmsmca.datasets.shapes import Shapes
from mmsmca.studies.progress import SweepProgress
from mmsmca.studies.record import Experiment, RunRecord, Study, StudyError
from mmsmca.studies.run_process import HeldError, Signals, TrainRun, end_run, hold, is_held, state
from mmsmca.studies.study import load_study
from mmsmca.studies.sweep import Resources, Sweep, select

RECORD = RunRecord('study', Experiment('e', ['config.py'], {}), 0, '0', 1)

# Stands in for tools/train.py where training is not the point: writes MMEngine's files, takes up
# where they end, and does what the config's `behaviour` says.
TRAIN = """
import json, os, re, sys, time
from pathlib import Path
behaviour = re.search("behaviour='(.*?)'", Path(sys.argv[1]).read_text())[1]
work_dir = Path(sys.argv[3])
print('GPUs', repr(os.environ['CUDA_VISIBLE_DEVICES']), flush=True)
if behaviour == 'fail':
    print('out of cheese')
    sys.exit(3)
if behaviour == 'killed':
    os.kill(os.getpid(), 9)
checkpoint = work_dir / 'last_checkpoint'
first = int(checkpoint.read_text()) + 1 if checkpoint.exists() else 1
folder = work_dir / str(time.time_ns()) / 'vis_data'
folder.mkdir(parents=True)
with (folder / 'scalars.json').open('w') as log:
    for step in range(first, 5):
        print(json.dumps(dict(step=step, iter=step, loss=4 / step, time=0.5)), file=log, flush=True)
        checkpoint.write_text(str(step))
        if behaviour == 'wait' and step == 2 and not (work_dir / 'go').exists():
            time.sleep(1000)
    print(json.dumps({'coco/bbox_mAP': 0.25, 'step': 4}), file=log)
"""


def fake_study(folder, *behaviours, seeds=(0,)):
    """A study with one experiment per behaviour of ``TRAIN``."""
    (folder / 'train.py').write_text(TRAIN)
    (folder / 'config.py').write_text(
        "model = dict(behaviour='work')\ntrain_cfg = dict(type='IterBased', max_iters=4)"
    )
    experiments = [
        dict(name=name, config='config.py', cfg_options={'model.behaviour': name})
        for name in behaviours
    ]
    path = folder / 'study.py'
    content = dict(baseline=behaviours[0], seeds=list(seeds), experiments=experiments)
    path.write_text('\n'.join(f'{key} = {value!r}' for key, value in content.items()))
    return path


def sweep_of(path, **resources):
    study, folder = load_study(path), path.parent
    sweep = Sweep(study, study.runs, folder / 'work', folder / 'train.py', Resources(**resources))
    sweep.work_dir.mkdir(exist_ok=True)
    return sweep


def fake_sweep(folder, *behaviours, seeds=(0,), **resources):
    return sweep_of(fake_study(folder, *behaviours, seeds=seeds), **resources)


class Here:
    """A job that runs where it is submitted: a process of its own imports for seconds."""

    job_id = '0'

    def submit(self, train):
        train()
        return self

    def done(self):
        return True


class Forked:
    """A job in a process of its own, in which everything is imported already."""

    def submit(self, train):
        self.process = multiprocessing.get_context('fork').Process(target=train, daemon=True)
        self.process.start()
        self.job_id = str(self.process.pid)
        return self

    def done(self):
        return not self.process.is_alive()


@pytest.fixture
def forked(monkeypatch):
    """Jobs on this machine start at once, where submitit's import for seconds."""
    executor = Sweep._executor
    monkeypatch.setattr(Sweep, '_executor', lambda self, run: executor(self, run) and Forked())


def finish(sweep, retry_failed=False):
    """Run what is pending, one after the other; returns the runs started."""
    started = sweep.pending(retry_failed)
    executor = sweep._executor
    sweep._executor = lambda run: executor(run) and Here()
    for run in started:
        sweep.start(run)
        assert sweep.collect() == [run]
    sweep._executor = executor
    return [run.dir for run in started]


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.05)


def states(sweep):
    return {run.experiment: sweep.state_of(run) for run in sweep.runs}


def scalars_of(sweep):
    return sorted(path.parent.parent.name for path in sweep.work_dir.glob('*/*/*/vis_data/*.json'))


def test_failed_and_killed_runs(tmp_path):
    sweep = fake_sweep(tmp_path, 'work', 'fail', 'killed')
    assert len(finish(sweep)) == 3
    assert states(sweep) == {'work': 'finished', 'fail': 'failed', 'killed': 'cut off'}

    run, failed, _ = (sweep.dir_of(run) for run in sweep.runs)
    result = json.loads((run / 'result.json').read_text())
    assert result['metrics']['AP'] == 0.25
    assert result['iterations'] == 4
    assert result['peak_memory_mib'] > 1
    record = json.loads((run / 'run.json').read_text())
    assert record['experiment']['name'] == 'work'
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
    sweep.study.write(sweep.work_dir)
    finish(sweep)
    (old,) = [run.dir for run in sweep.runs]
    path = tmp_path / 'config.py'
    path.write_text(path.read_text().replace('max_iters=4', 'max_iters=5'))
    again = sweep_of(tmp_path / 'study.py')
    again.study.write(again.work_dir)
    (new,) = [run.dir for run in again.runs]
    assert new != old
    assert again.pending(retry_failed=False) == again.runs
    assert [run.dir for run in Study.read(sweep.work_dir).runs] == [new]
    assert state(sweep.work_dir / old) == 'finished'


def test_gpus_side_by_side(tmp_path, monkeypatch, forked):
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
    first, second = sweep.runs
    command = sweep._command(tmp_path / 'config.py', tmp_path)
    assert command[1:5] == ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    assert command[-2:] == ['--launcher', 'pytorch']
    sweep._command = lambda *paths: [sys.executable, str(sweep.train_script)]
    sweep.start(first)
    sweep.start(second)
    wait_for(lambda: sweep.collect() is not None and not sweep.active)
    assert sorted(path.name for path in out.iterdir()) == ['2,3', '5,GPU-7']


def test_runs_share_gpus(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,7')
    with pytest.raises(StudyError, match='need 3 GPUs; this machine has 2; --share-gpus puts'):
        Resources(jobs=3, gpus_per_job=1).check()
    shared = Resources(jobs=3, gpus_per_job=1, share_gpus=True)
    shared.check()
    assert [shared.gpus(place) for place in range(3)] == [['4'], ['7'], ['4']]
    with pytest.raises(StudyError, match='need 3 GPUs'):
        Resources(jobs=1, gpus_per_job=3, share_gpus=True).check()


def test_the_record_of_a_run_names_its_gpus(tmp_path, monkeypatch):
    """submitit hides all GPUs from its local jobs."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setattr(
        'mmsmca.studies.run_process.machine', lambda: dict(gpus=os.environ['CUDA_VISIBLE_DEVICES'])
    )
    record = copy.deepcopy(RECORD)
    TrainRun(tmp_path, ['false'], record, ['3', '5'])()
    assert [attempt.hardware for attempt in record.attempts] == [dict(gpus='3,5')]


def test_gpus_of_a_run_make_another_run(tmp_path):
    """Twice the GPUs are twice the batch."""
    path = fake_study(tmp_path, 'work')
    (one,), (two,) = load_study(path).runs, load_study(path, world_size=2).runs
    assert one.id != two.id


def test_a_process_is_no_slurm_job(tmp_path, monkeypatch):
    """The number in job.json is a process of this machine: never Slurm's to look up or cancel."""
    sweep = fake_sweep(tmp_path, 'killed')
    finish(sweep)
    (run,) = sweep.runs
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
    failure = json.loads((sweep.dir_of(sweep.runs[0]) / 'failed.json').read_text())
    assert 'killed 3 times by SIGKILL' in failure['log_tail'][-1]
    attempts = json.loads((sweep.dir_of(sweep.runs[0]) / 'run.json').read_text())['attempts']
    assert [attempt['exit_code'] for attempt in attempts] == [-9, -9, -9]


def test_experiments_of_one_config_run_side_by_side(tmp_path, forked):
    """An A/A study: both have one digest, and are two runs."""
    path = fake_study(tmp_path, 'work')
    twins = [dict(name=name, config='config.py') for name in ('work', 'again')]
    path.write_text(f"baseline = 'work'\nseeds = [0]\nexperiments = {twins!r}")
    sweep = sweep_of(path, jobs=2)
    for run in sweep.runs:
        sweep.start(run)
    assert len(sweep.active) == 2
    wait_for(lambda: sweep.collect() is not None and not sweep.active)
    assert states(sweep) == {'work': 'finished', 'again': 'finished'}


def test_what_comes_while_a_training_starts_is_forwarded():
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
        signals.forward_to(child)
        assert child.wait() == -signal.SIGTERM
    assert signals.received


def test_only_processes_of_the_run_are_signalled(tmp_path):
    """The number of a run's process may be another's by now."""
    other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
    ids = dict(host=socket.gethostname(), ids=[other.pid])
    (tmp_path / 'processes.json').write_text(json.dumps(ids))
    with hold(tmp_path / '.lock') as lock:
        assert not end_run(tmp_path)
        ours = subprocess.Popen(['sleep', '600'], pass_fds=[lock.fileno()])
        ids['ids'].append(ours.pid)
        (tmp_path / 'processes.json').write_text(json.dumps(ids))
        assert end_run(tmp_path)
        assert ours.wait() == -signal.SIGTERM
    assert other.poll() is None
    other.kill()
    other.wait()


def test_files_that_a_power_loss_left_empty(tmp_path):
    """The run is resumed, with what is known of it."""
    sweep = fake_sweep(tmp_path, 'work')
    finish(sweep)
    (run,) = sweep.runs
    for name in ('run', 'job', 'result', 'processes'):
        (sweep.dir_of(run) / f'{name}.json').write_text('')
    assert states(sweep) == {'work': 'cut off'}
    finish(sweep)
    assert states(sweep) == {'work': 'finished'}
    (attempt,) = json.loads((sweep.dir_of(run) / 'run.json').read_text())['attempts']
    assert attempt['exit_code'] == 0


def test_interrupting_ends_runs_of_an_earlier_sweep(tmp_path, forked):
    first = fake_sweep(tmp_path, 'wait')
    (run,) = first.runs
    first.start(run)
    wait_for(lambda: (first.dir_of(run) / 'last_checkpoint').exists())
    second = fake_sweep(tmp_path, 'wait')
    second.start(run)
    assert second.active == {run.dir: None}
    assert second.cancel() == []
    wait_for(lambda: second.collect())
    assert states(second) == {'wait': 'cut off'}
    assert not end_run(first.dir_of(run))


def test_before_a_time_limit_a_run_is_queued_again(tmp_path, forked):
    """What submitit calls as Slurm's limit nears: the training ends, and is to go on later."""
    sweep = fake_sweep(tmp_path, 'wait')
    (run,) = sweep.runs
    sweep.start(run)
    run_dir = sweep.dir_of(run)
    wait_for(lambda: (run_dir / 'last_checkpoint').exists())
    train = TrainRun(run_dir, ['true'], RECORD)
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


@pytest.mark.slow
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
    assert [(run.experiment, run.seed) for run in part] == [('fail', 0), ('fail', 2)]
    assert select(study) == study.runs
    with pytest.raises(StudyError, match='--only wrok: .*work, fail'):
        select(study, ['wrok'], None)
    with pytest.raises(StudyError, match='--seeds 4: .*0, 1, 2'):
        select(study, None, [4])


def test_time_left_of_a_run_by_epochs(tmp_path):
    """At the end of the second of four epochs, two are left."""
    path = fake_study(tmp_path, 'wait')
    (tmp_path / 'config.py').write_text(
        "model = dict(behaviour='work')\ntrain_cfg = dict(by_epoch=True, max_epochs=4)"
    )
    sweep = sweep_of(path)
    (run,) = sweep.runs
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

    def read(*args):
        raise AssertionError('read again')

    monkeypatch.setattr('mmsmca.studies.progress.read_log', read)
    progress.__rich__()


def test_run_left_by_a_killed_sweep_is_waited_for(tmp_path, forked):
    """The sweep is gone, its run goes on: the next sweep neither doubles nor forgets it."""
    first = fake_sweep(tmp_path, 'wait')
    (run,) = first.runs
    first.start(run)
    run_dir = first.dir_of(run)
    wait_for(lambda: (run_dir / 'last_checkpoint').exists())

    second = fake_sweep(tmp_path, 'wait')
    (pending,) = second.pending(retry_failed=False)
    second.start(pending)
    assert second.active == {run.dir: None}
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


def test_a_run_is_never_trained_twice_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr('mmsmca.studies.run_process.PATIENCE', 0.2)
    with hold(tmp_path / '.lock'):
        assert is_held(tmp_path)
        with pytest.raises(HeldError, match=rf'held by process {os.getpid()} on .+, since 20'):
            TrainRun(tmp_path, ['false'], RECORD)()
    assert not is_held(tmp_path)
    assert not (tmp_path / 'failed.json').exists()


def test_progress(tmp_path):
    sweep = fake_sweep(tmp_path, 'work', 'fail', 'new')
    runs, sweep.runs = sweep.runs, sweep.runs[:2]
    finish(sweep)
    sweep.runs = runs
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


@pytest.mark.slow
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
    (run,) = sweep.pending(retry_failed=False)
    sweep.start(run)
    wait_for(lambda: sweep.collect())
    assert states(sweep) == {'work': 'finished'}
    (script,) = (sweep.work_dir / 'jobs').glob('*_submission.sh')
    text = script.read_text()
    assert '#SBATCH --partition=gpu' in text
    assert '#SBATCH --time=90' in text
    assert '#SBATCH --gpus-per-node=1' in text
    assert '#SBATCH --job-name=work-0' in text


def test_models_and_data_are_checked_first(tmp_path):
    data = tmp_path / 'data'
    Shapes(num_train=2, num_val=2, size=64).write(data)
    good = real_study(tmp_path, data)
    sweep_of(good).check()
    for wrong, message in (
        ({'model.decoder.num_layer': 3}, 'small: model: .*num_layer'),
        ({'train_dataloader.dataset.data_root': 'nowhere/'}, 'small: .*nowhere'),
    ):
        with pytest.raises(StudyError, match=message):
            sweep_of(real_study(tmp_path, data, **wrong)).check()


@pytest.fixture
def call(monkeypatch, capfd):
    """Runs ``tools/sweep.py`` here, as importing all of it again takes seconds.

    Returns its exit status, and what it printed to stdout and to stderr.
    """
    monkeypatch.setenv('OMP_NUM_THREADS', os.environ.get('OMP_NUM_THREADS', '1'))
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['tools/sweep.py', *map(str, arguments)])
        try:
            status = runpy.run_path(str(ROOT / 'tools/sweep.py'))['main']()
        except SystemExit as end:  # Of argparse.
            status = end.code
        return status, *capfd.readouterr()

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.slow
def test_killed_sweep_of_real_runs(tmp_path, call):
    """SIGKILL for the sweep and everything it started, in the middle of a run; then once more."""
    data, work_dir = tmp_path / 'data', tmp_path / 'work'
    Shapes(num_train=4, num_val=2, size=64).write(data)
    study = real_study(tmp_path, data)
    status, plan, error = call(study, '--work-dir', work_dir, '--dry-run')
    assert status == 0, error
    assert plan.count('new') == 2
    assert not work_dir.exists()

    command = [sys.executable, str(ROOT / 'tools/sweep.py'), str(study), '--work-dir', work_dir]
    sweep = subprocess.Popen(command, start_new_session=True)
    wait_for(lambda: list(work_dir.glob('small/*/iter_2.pth')))

    status, _, error = call(study, '--work-dir', work_dir)
    assert status == 2
    assert f'held by process {sweep.pid} on' in error

    sweep.kill()
    for run_dir in work_dir.glob('small/*'):
        for process in holders(run_dir):
            os.kill(process, signal.SIGKILL)
    sweep.wait()

    status, *printed = call(study, '--work-dir', work_dir)
    assert status == 0, printed
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
    assert call(study, '--work-dir', work_dir)[0] == 0
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
def test_wrong_commands(arguments, message, tmp_path, call, monkeypatch):
    study = fake_study(tmp_path, 'work')
    work_dir = tmp_path / 'work'
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    arguments = [study if argument == 'STUDY' else argument for argument in arguments]
    status, _, error = call(*arguments, '--work-dir', work_dir)
    assert status == 2
    # No detector in the config: refused before anything is written.
    assert ('error: work: ' if message == 'work: configs' else message) in error
    assert not work_dir.exists()
