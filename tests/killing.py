"""Ending a process at a chosen step on the file system, as kill -9 or a power failure does."""

import multiprocessing
import os
import sys


FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir", "os.link", "shutil.rmtree")


def die_at(event_number, task, folder):
    """Run `task` in a process that is ended, with no time to tidy up, at its n-th step on files in `folder`."""

    def run():
        count = 0

        def count_down(event, args):
            nonlocal count
            if event in FILE_EVENTS and str(folder) in str(args[:2]):
                count += 1
                if count == event_number:
                    os._exit(9)

        sys.addaudithook(count_down)
        task()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    return process.exitcode == 9
