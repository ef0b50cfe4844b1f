"""``python COMMAND`` in processes forked from a server that has imported MMDetection.

Importing takes a process of its own four seconds, forking a tenth of one.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path
from subprocess import CompletedProcess

import torch

SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['mmdet.apis', 'mmdet.evaluation', 'mmsmca.launch'])


def interpret(command: list[str], folder: str, environment: dict[str, str], output: str) -> None:
    """Be ``python COMMAND``: a file, ``-m`` and a module, or ``-c`` and code."""
    for stream in (1, 2):
        os.dup2(os.open(f'{output}/{stream}', os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if 'OMP_NUM_THREADS' in environment:
        torch.set_num_threads(int(environment['OMP_NUM_THREADS']))
    sys.path[:0] = filter(None, environment.get('PYTHONPATH', '').split(os.pathsep))
    if command[0] == '-c':
        sys.argv = ['-c', *command[2:]]
        exec(command[1], dict(__name__='__main__'))
    elif command[0] == '-m':
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).parent.absolute()))
        runpy.run_path(command[0], run_name='__main__')


def run_python(
    *command: object,
    cwd: object = '.',
    code: int | None = 0,
    timeout: float = 300,
    processes: int = 1,
    **environment: object,
) -> CompletedProcess:
    """Run ``python COMMAND`` and capture its output.

    Args:
        command: What follows ``python`` on the command line.
        cwd: The folder to run in.
        code: The exit status that is expected, None for any.
        timeout: Seconds after which the command is killed.
        processes: How many run together, as ``torchrun`` starts them; the output is all of theirs.
        environment: Variables that are set in addition to those of this process.
    """
    words = [str(word) for word in command]
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    with tempfile.TemporaryDirectory() as output:
        started = []
        for group in groups(processes):
            arguments = (words, str(cwd), variables | group, output)
            started.append(SERVER.Process(target=interpret, args=arguments))
            started[-1].start()
        end = time.monotonic() + timeout
        while running := [process for process in started if process.is_alive()]:
            wait([process.sentinel for process in running], end - time.monotonic())
            # One that failed would be waited for by the others.
            if time.monotonic() > end or any(process.exitcode for process in started):
                for process in running:
                    process.kill()
                    process.join()
        out, err = (Path(output, stream).read_text(errors='replace') for stream in '12')
    status = next(filter(None, (process.exitcode for process in started)), 0)
    assert code in (None, status), f'{words}: exit status {status}\n{out[-3000:]}\n{err[-3000:]}'
    return CompletedProcess(words, status, out, err)


def groups(processes: int) -> list[dict[str, str]]:
    """The variables by which processes of ``torch.distributed`` find each other."""
    if processes == 1:
        return [{}]
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    shared = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(processes))
    return [dict(shared, RANK=str(i), LOCAL_RANK=str(i)) for i in range(processes)]
