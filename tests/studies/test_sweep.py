"""Sweeps: what runs, what is skipped and resumed, and what survives being killed."""

import json
import os
import pickle
import runpy
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
import submitit
from rich.console import Console
from runs import real_study
from utils import ROOT

from mmsmca.datasets.shapes import Shapes
from mmsmca.files import exclusive_lock
from mmsmca.studies import console, run_process
from mmsmca.studies.console import SweepProgress, run_sweep
from mmsmca.studies.record import Experiment, RunRecord, Study, StudyError
from mmsmca.studies.run_process import TrainRun, owned_children, owner_is_gone, state
from mmsmca.studies.study import load_study, select
from mmsmca.studies.sweep import Resources, Sweep

# Stands in for tools/train.py where training is not the point: writes MMEngine's files, takes up
# where they end, and does what the config's `behaviour` says.
TRAIN = """
import json, os, re, signal, sys, time
from pathlib import Path
behaviour = re.search("behaviour='(.*?)'", Path(sys.argv[1]).read_text())[1]
work_dir = Path(sys.argv[3])
print('GPUs', repr(os.environ['CUDA_VISIBLE_DEVICES']), flush=True)
if behaviour == 'fail':
    print('out of cheese')
    sys.exit(3)
if behaviour == 'killed':
    os.kill(os.getpid(), 9)
if behaviour == 'stubborn':
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
checkpoint = work_dir / 'last_checkpoint'
first = int(checkpoint.read_text()) + 1 if checkpoint.exists() else 1
folder = work_dir / str(time.time_ns()) / 'vis_data'
folder.mkdir(parents=True)
with (folder / 'scalars.json').open('w') as log:
    for step in range(first, 5):
        print(json.dumps(dict(step=step, iter=step, loss=4 / step, time=0.5)), file=log, flush=True)
        checkpoint.write_text(str(step))
        waits = behaviour in ('wait', 'stubborn')
        if waits and step == 2 and first == 1 and not (work_dir / 'go').exists():
            time.sleep(1000)
    if behaviour != 'unevaluated':
        print(json.dumps({'coco/bbox_mAP': 0.25, 'step': 4}), file=log)
"""


def fake_study(folder, *behaviours, seeds=(0,)):
    """A study with one experiment per behaviour of ``TRAIN``."""
    (folder / 'train.py').write_text(TRAIN)
    (folder / 'config.py').write_text(
        "model = dict(behaviour='work')\ntrain_cfg = dict(max_iters=4, val_interval=4)"
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
    """Stands in for submitit's executor and job: runs where it is submitted, without imports."""

    state = 'RUNNING'

    def submit(self, train):
        train.owned = False
        train()
        return self

    def done(self):
        return True


def finish(sweep, retry_failed=False):
    """Run what is pending, one after the other; returns the experiments started."""
    started = sweep.pending(retry_failed)
    sweep._executor = lambda run: Here()
    for run in started:
        sweep.start(run)
        assert sweep.collect() == [run]
    return [run.experiment for run in started]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.05)


def states(sweep):
    return {run.experiment: sweep.state_of(run) for run in sweep.runs}


def record_of(sweep, name, i=0):
    path = sweep.dir_of(sweep.runs[i]) / f'{name}.json'
    return json.loads(path.read_text()) if path.exists() else None


def logs_of(sweep):
    return sorted(path.parent.parent.name for path in sweep.work_dir.glob('*/*/*/vis_data/*.json'))


def test_failed_and_killed_runs(tmp_path):
    sweep = fake_sweep(tmp_path, 'work', 'fail', 'killed', 'unevaluated')
    assert finish(sweep) == ['work', 'fail', 'killed', 'unevaluated']
    expected = dict(work='finished', fail='failed', killed='cut off', unevaluated='finished')
    assert states(sweep) == expected

    result = record_of(sweep, 'result')
    assert result['metrics']['AP'] == 0.25 and result['iterations'] == 4
    assert result['peak_memory_mib'] > 1
    record = record_of(sweep, 'run')
    assert (record['experiment']['name'], record['seed']) == ('work', 0)
    (attempt,) = record['attempts']
    assert attempt['versions']['torch'].startswith('2.')
    assert attempt['hardware']['cores'] == os.cpu_count()
    assert attempt['exit_code'] == 0
    failure = record_of(sweep, 'failed', 1)
    assert (failure['exit_code'], failure['log_tail'][-1]) == (3, 'out of cheese')
    # No GPU was asked for, so none is seen.
    assert "GPUs ''" in (sweep.dir_of(sweep.runs[0]) / 'train.log').read_text()
    # Never the AP of an earlier evaluation.
    assert record_of(sweep, 'result', 3)['metrics'] == {}

    # Again: what is finished stays, what failed waits to be asked for.
    logs = logs_of(sweep)
    assert finish(sweep) == ['killed']
    assert finish(sweep, retry_failed=True) == ['fail', 'killed']
    assert logs_of(sweep) == logs
    attempts = record_of(sweep, 'run', 2)['attempts']
    assert [attempt['exit_code'] for attempt in attempts] == [-9, -9, -9]


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
    # Twice the GPUs are twice the batch: another run as well.
    assert load_study(tmp_path / 'study.py', world_size=2).runs[0].dir != new


def test_gpus(tmp_path, monkeypatch):
    """Concurrent runs have GPUs of their own, in turn if there are too few."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3,5,GPU-7')
    pairs = Resources(jobs=3, gpus_per_job=2)
    assert [pairs.gpus(place) for place in range(3)] == [['2', '3'], ['5', 'GPU-7'], ['2', '3']]
    with pytest.raises(StudyError, match='--gpus-per-job 5: this machine has 4 GPUs'):
        Resources(gpus_per_job=5).check()
    sweep = fake_sweep(tmp_path, 'work', jobs=2, gpus_per_job=2)
    command = sweep._command(tmp_path / 'config.py', tmp_path)
    assert command[1:5] == ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    assert command[-2:] == ['--launcher', 'pytorch']
    # submitit hides all GPUs from its local jobs: the run and its record see their own.
    monkeypatch.setattr(
        run_process, 'machine', lambda: dict(gpus=os.environ['CUDA_VISIBLE_DEVICES'])
    )
    sweep._command = lambda config, run_dir: ['sh', '-c', 'echo $CUDA_VISIBLE_DEVICES']
    finish(sweep)
    assert (sweep.dir_of(sweep.runs[0]) / 'train.log').read_text() == '2,3\n'
    assert record_of(sweep, 'run')['attempts'][0]['hardware'] == dict(gpus='2,3')


def test_experiments_of_one_config_are_two_runs(tmp_path):
    """An A/A study: both have one digest."""
    path = fake_study(tmp_path, 'work')
    twins = [dict(name=name, config='config.py') for name in ('work', 'again')]
    path.write_text(f"baseline = 'work'\nseeds = [0]\nexperiments = {twins!r}")
    sweep = sweep_of(path)
    assert len({run.id for run in sweep.runs}) == 1
    assert finish(sweep) == ['work', 'again']


@pytest.mark.parametrize('name', ['run', 'result'])
def test_files_that_a_power_loss_left_empty(tmp_path, name):
    """The run is taken up again. What its log has to the end is not trained once more."""
    sweep = fake_sweep(tmp_path, 'work')
    finish(sweep)
    (sweep.dir_of(sweep.runs[0]) / f'{name}.json').write_text('')
    assert states(sweep)['work'] == ('finished' if name == 'run' else 'cut off')
    logs = logs_of(sweep)
    finish(sweep)
    assert states(sweep) == {'work': 'finished'} and logs_of(sweep) == logs
    assert record_of(sweep, 'result')['metrics']['AP'] == 0.25
    assert (record_of(sweep, 'result')['peak_memory_mib'] is None) == (name == 'result')


def fork(function, pipe=None):
    """Run a function in a process of its own, in which everything is imported already."""
    process = os.fork()
    if process == 0:
        try:
            if pipe is not None:
                os.close(pipe)  # As it is in a program that is started.
            function()
        finally:
            os._exit(0)
    return process


def processes_of(folder):
    """The processes of all runs in a folder, with those of submitit."""
    found = []
    for process in psutil.process_iter(['cmdline', 'status']):
        if process.info['status'] != psutil.STATUS_ZOMBIE:
            if any(str(folder) in argument for argument in process.info['cmdline'] or ()):
                found.append(process)
    return found


def sweep_in_its_own_process(sweep, run, owned=True):
    """Starts a run as submitit does, with the sweep and the job forked; returns the sweep's id."""
    run_dir = sweep.dir_of(run)
    run_dir.mkdir(parents=True)
    (experiment,) = sweep.study.experiments
    record = RunRecord(study='s', experiment=experiment, seed=0, id=run.id, world_size=1)
    config = sweep.work_dir / 'config.py'
    run.cfg.dump(config)
    command = sweep._command(config, run_dir)
    train = TrainRun(run_dir, command, record, run.cfg.train_cfg.to_dict(), [], owned)

    def start():
        with owned_children() as pipe:
            fork(train, pipe)
            time.sleep(1000)

    process = fork(start)
    wait_for(lambda: (run_dir / 'last_checkpoint').exists())
    wait_for(lambda: (run_dir / 'last_checkpoint').read_text() == '2')
    return process


@pytest.mark.parametrize('behaviour', ['wait', 'stubborn'])
def test_runs_end_with_their_sweep(tmp_path, monkeypatch, behaviour):
    """SIGKILL for the sweep alone: its run ends, is cut off, and resumes."""
    monkeypatch.setattr(run_process, 'PATIENCE', 0.5)
    sweep = fake_sweep(tmp_path, behaviour)
    (run,) = sweep.runs
    process = sweep_in_its_own_process(sweep, run)
    assert len(processes_of(sweep.work_dir)) == 1
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    wait_for(lambda: not processes_of(sweep.work_dir), 20)
    wait_for(lambda: record_of(sweep, 'run')['attempts'][0]['exit_code'] is not None, 20)
    assert states(sweep) == {behaviour: 'cut off'}
    finish(sweep)
    assert states(sweep) == {behaviour: 'finished'}
    steps = [
        json.loads(line).get('iter')
        for path in sorted(sweep.dir_of(run).glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 4, None]


@pytest.mark.skipif(sys.platform != 'linux', reason='the kernel ends a child with its parent')
def test_a_training_ends_with_its_job(tmp_path):
    """SIGKILL for submitit's job alone."""
    sweep = fake_sweep(tmp_path, 'wait')
    process = sweep_in_its_own_process(sweep, sweep.runs[0])
    (training,) = processes_of(sweep.work_dir)
    training.parent().kill()
    wait_for(lambda: not processes_of(sweep.work_dir), 20)
    assert states(sweep) == {'wait': 'cut off'}
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_an_orphan_starts_nothing(tmp_path):
    """Of a sweep that was killed while the job imported what it needs."""
    experiment = Experiment(name='e', configs=['config.py'])
    record = RunRecord(study='s', experiment=experiment, seed=0, id='0', world_size=1)
    train = TrainRun(tmp_path, ['touch', str(tmp_path / 'started')], record, {}, owned=True)
    with owned_children() as pipe:
        assert not owner_is_gone()
        process = fork(lambda: wait_for(owner_is_gone) or train(), pipe)
    os.waitpid(process, 0)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('seconds', [0.001, 1])
def test_before_a_time_limit_a_run_is_queued_again(seconds, tmp_path):
    """What submitit calls as Slurm's limit nears: the training ends, and is to go on later.

    The limit may come before the training has started.
    """
    experiment = Experiment(name='e', configs=['config.py'])
    record = RunRecord(study='s', experiment=experiment, seed=0, id='0', world_size=1)
    train = TrainRun(tmp_path, ['sleep', '1000'], record, {})
    found = []

    def limit(*signal_and_frame):
        found.append(train.checkpoint())

    before = signal.signal(signal.SIGALRM, limit)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    train()
    signal.signal(signal.SIGALRM, before)
    (again,) = found
    assert state(tmp_path) == 'cut off' and record.attempts[0].exit_code == -signal.SIGTERM
    assert pickle.loads(pickle.dumps(again.function)).run_dir == tmp_path


def test_help_imports_nothing_that_takes_long():
    code = (
        "import runpy, sys; sys.argv = ['sweep.py', '--help']\n"
        f"try: runpy.run_path({str(ROOT / 'tools/sweep.py')!r}, run_name='__main__')\n"
        "except SystemExit: print('imported', {'torch', 'mmdet', 'mmsmca'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == 'imported set()', done.stderr


def test_a_part_of_a_study(tmp_path):
    study = load_study(fake_study(tmp_path, 'work', 'fail', seeds=(0, 1, 2)))
    part = select(study, ['fail'], [2, 0])
    assert [(run.experiment, run.seed) for run in part] == [('fail', 0), ('fail', 2)]
    assert select(study) == study.runs
    with pytest.raises(StudyError, match='--only wrok: .*work, fail'):
        select(study, ['wrok'], None)
    with pytest.raises(StudyError, match='--seeds 4: .*0, 1, 2'):
        select(study, None, [4])


def test_progress(tmp_path, monkeypatch):
    sweep = fake_sweep(tmp_path, 'work', 'fail', 'new')
    runs, sweep.runs = sweep.runs, sweep.runs[:2]
    finish(sweep)
    sweep.runs = runs
    console_ = Console(width=120, record=True, file=open(os.devnull, 'w'))
    progress = SweepProgress(sweep)
    console_.print(progress)
    text = console_.export_text()
    assert '1 finished, 1 failed, 1 new' in text
    (line,) = (line for line in text.splitlines() if ' work ' in line)
    cells = [cell.strip() for cell in line.strip('│').split('│')]
    assert cells == ['work', '0', 'finished', '4/4', '1.00', '0.250', '']
    # Logs of finished runs are read once.
    monkeypatch.setattr(console, 'read_log', lambda *args: pytest.fail('read again'))
    sweep.runs = runs[:1]
    progress.__rich__()


def test_time_left_of_a_run_by_epochs(tmp_path):
    """At the end of the second of four epochs, two are left."""
    path = fake_study(tmp_path, 'wait')
    (tmp_path / 'config.py').write_text('model = dict(behaviour=0)\ntrain_cfg = dict(max_epochs=4)')
    sweep = sweep_of(path)
    (run,) = sweep.runs
    folder = sweep.dir_of(run) / '1/vis_data'
    folder.mkdir(parents=True)
    lines = [dict(step=i, iter=i, epoch=1 + (i - 1) // 10, time=2.0, loss=1) for i in range(1, 21)]
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    assert SweepProgress(sweep)._figures(run, 'running')[3] == '0:00:40'


def test_slurm(tmp_path, monkeypatch):
    """What is submitted, with which parameters; no command of Slurm runs."""
    scripts = []

    def submit(executor, command):
        scripts.append(executor._make_submission_file_text(command, 'id'))
        return submitit.SlurmJob(executor.folder, '7')

    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setattr(submitit.SlurmExecutor, 'affinity', classmethod(lambda cls: 1))
    monkeypatch.setattr(submitit.SlurmExecutor, '_submit_command', submit)
    sweep = fake_sweep(tmp_path, 'work', gpus_per_job=1, slurm=dict(partition='gpu', time=90))
    (run,) = sweep.pending(retry_failed=False)
    sweep.start(run)
    # Slurm runs one job of a name at a time.
    name = f'job-name=study-work-0-{run.id}'
    options = ('partition=gpu', 'time=90', 'gpus-per-node=1', name, 'dependency=singleton')
    for option in options:
        assert f'#SBATCH --{option}\n' in scripts[0]
    # The job trains with the GPUs that Slurm gives it, and outlives the sweep.
    (pickled,) = (sweep.work_dir / 'jobs').glob('*submitted.pkl')
    train = submitit.core.utils.DelayedSubmission.load(pickled).function
    assert (train.gpus, train.owned) == (None, False)
    train()
    assert state(sweep.dir_of(run)) == 'finished'
    # A job that an earlier sweep left in the queue finds the run finished.
    train()
    assert len(record_of(sweep, 'run')['attempts']) == 1


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
def test_killed_sweep_of_a_real_run(tmp_path, call):
    """SIGKILL for a sweep in the middle of a run; then the same command once more, at once."""
    data, work_dir = tmp_path / 'data', tmp_path / 'work'
    Shapes(num_train=4, num_val=2, size=64).write(data)
    arguments = real_study(tmp_path, data), '--work-dir', work_dir, '--seeds', '0'
    status, plan, error = call(*arguments, '--dry-run')
    assert status == 0, error
    assert plan.count('new') == 1
    assert not work_dir.exists()

    command = [sys.executable, str(ROOT / 'tools/sweep.py'), *map(str, arguments)]
    sweep = subprocess.Popen(command)
    wait_for(lambda: list(work_dir.glob('small/*/iter_2.pth')), 600)
    status, _, error = call(*arguments)
    assert status == 2
    assert f'another process is writing {work_dir}' in error

    sweep.kill()
    sweep.wait()
    status, *printed = call(*arguments)
    assert status == 0, printed
    (run_dir,) = (path.parent for path in work_dir.glob('small/*/result.json'))
    assert json.loads((run_dir / 'result.json').read_text())['iterations'] == 8
    (config,) = run_dir.glob('*.py')
    assert "type='AtomicCheckpointHook'" in config.read_text()
    assert 'resumed epoch: 0, iter: ' in (run_dir / 'train.log').read_text()
    # The log says after which iteration the evaluation was.
    logs = sorted(run_dir.glob('*/vis_data/scalars.json'))
    assert len(logs) == 2 and json.loads(logs[-1].read_text().splitlines()[-1])['step'] == 8

    before = [path.stat().st_mtime_ns for path in logs]
    assert call(*arguments)[0] == 0
    assert [path.stat().st_mtime_ns for path in logs] == before
    assert sorted(run_dir.glob('*/vis_data/scalars.json')) == logs


@pytest.mark.parametrize('end', ['signal', 'full disk', 'another sweep'])
def test_a_sweep_that_ends_early(tmp_path, monkeypatch, end):
    """With one line, and with its runs, which can be resumed."""
    monkeypatch.setattr(Sweep, 'check', lambda self: None)
    monkeypatch.setattr(console, 'POLL_SECONDS', 0.1)
    sweep = fake_sweep(tmp_path, 'wait', 'work', jobs=2)
    jobs = []

    def own():
        with owned_children() as pipe:
            pipes.append(pipe)
            yield pipe

    pipes = []
    monkeypatch.setattr(console, 'owned_children', contextmanager(own))

    class Forked(Here):
        def submit(self, train):
            self.process = fork(train, pipes[0])
            jobs.append(self)
            wait_for(lambda: (train.run_dir / 'last_checkpoint').exists())
            if end == 'signal':
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                error = OSError(28, 'No space left on device', 'run.json')
                monkeypatch.setattr(RunRecord, 'write', lambda *args: (_ for _ in ()).throw(error))
            return self

        def done(self):
            return os.waitpid(self.process, os.WNOHANG)[0] != 0

    monkeypatch.setattr(Sweep, '_executor', lambda self, run: Forked())
    if end == 'signal':
        assert run_sweep(sweep) == 1
    elif end == 'full disk':
        with pytest.raises(StudyError, match='^run.json: No space left on device. The runs are'):
            run_sweep(sweep)
        wait_for(jobs[0].done, 20)
    else:
        lock = exclusive_lock(sweep.work_dir / '.lock')
        with lock, pytest.raises(ValueError, match='another process is writing .*work/.lock'):
            run_sweep(sweep)
        assert not jobs
        return
    assert not processes_of(sweep.work_dir)
    assert sweep_of(tmp_path / 'study.py').state_of(sweep.runs[0]) == 'cut off'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.py'], 'none.py: no such file'),
        (['STUDY', '--gpus-per-job', '1'], 'this machine has 0'),
        (['STUDY', '--slurm', 'partition'], "--slurm: 'partition' is not KEY=VALUE"),
        (
            ['STUDY', '--slurm', 'partitoin=a', 'time=9'],
            'submitit has no such parameter. Known: account',
        ),
        (['STUDY', '--slurm', 'partition=a'], '--slurm: time is missing'),
        (['STUDY', '--only', 'wrok'], '--only wrok'),
        (['STUDY', '--jobs', '0'], '0 is less than 1'),
        (['STUDY'], 'error: work: '),
    ],
)
def test_wrong_commands(arguments, message, tmp_path, call, monkeypatch):
    study = fake_study(tmp_path, 'work')
    work_dir = tmp_path / 'work'
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    arguments = [study if argument == 'STUDY' else argument for argument in arguments]
    status, _, error = call(*arguments, '--work-dir', work_dir)
    assert status == 2
    # The last has no detector in its config: refused before anything is written.
    assert message in error
    assert not work_dir.exists()
