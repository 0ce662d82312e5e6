/* A GNU make plugin that lets `make serve` end with status 0 after a signal.
 *
 * Without it make dies of the signal itself once the server has drained (status 130 or 143), and a SIGINT sent to make
 * alone never reaches the server. With it make hands the signal on as SIGTERM and waits for the recipe as usual.
 * The Makefile builds and loads it where a C compiler is at hand, and only for targets that run a server.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/types.h>
#include <unistd.h>

int plugin_is_GPL_compatible; /* make asks for this symbol; Apache-2.0 is compatible with make's GPLv3 */

static char children_file[64];

/* Only async-signal-safe calls here. The kernel lists the children's process ids, separated by blanks. */
static void hand_on(int signal_number) {
    char text[512];
    int file = open(children_file, O_RDONLY);
    (void)signal_number;
    if (file < 0) return;
    ssize_t length = read(file, text, sizeof text);
    close(file);
    pid_t pid = 0;
    for (ssize_t i = 0; i < length; i++) {
        if (text[i] >= '0' && text[i] <= '9') {
            pid = pid * 10 + (text[i] - '0');
        } else {
            if (pid > 0) kill(pid, SIGTERM);
            pid = 0;
        }
    }
}

int make_signals_gmk_setup(void) {
    struct sigaction action = {0};
    action.sa_handler = hand_on;
    action.sa_flags = SA_RESTART;
    snprintf(children_file, sizeof children_file, "/proc/%d/task/%d/children", getpid(), getpid());
    if (access(children_file, R_OK) != 0) return 1; /* no such kernel interface: keep make's own handlers */
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    return 1;
}
