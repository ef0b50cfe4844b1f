"""What is disabled is silent, and says again afterwards what it said before."""

import logging

from mmengine.logging import MMLogger

from mmsmca.engine.quiet import quiet


def test_loggers_of_mmengine_too():
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = MMLogger('test_quiet', log_level='INFO')
    logger.addHandler(handler)
    MMLogger._instance_dict['test_quiet'] = logger
    try:
        logger.info('before')
        with quiet(logging.INFO):
            logger.info('unheard')
            logger.warning('a warning')
            with quiet(logging.WARNING):
                logger.warning('unheard')
            logger.info('unheard')
        logger.info('after')
    finally:
        del MMLogger._instance_dict['test_quiet']
    assert said == ['before', 'a warning', 'after']
