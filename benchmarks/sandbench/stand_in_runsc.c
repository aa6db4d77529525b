/* Stands where runsc stands and runs nothing: says what init says of a program that exits 0 at
 * once, and is gone. So a worker can be measured that does everything for a sandbox (folder,
 * cgroups, pipes, processes) but the sandbox. The worker's own probe of the host, and what it asks
 * the binary, get the real runsc, whose path is compiled in. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define CONTROL 3
#define STATUS 4

static int is_probe(const char *bundle) {
    char path[512], text[8192];
    snprintf(path, sizeof path, "%s/config.json", bundle);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    return strstr(text, "/probe.erofs") != 0;
}

static int say(int status, const char *line) { return write(status, line, strlen(line)) < 0; }

int main(int count, char **words) {
    int control = -1, status = -1;
    for (int at = 1; at < count; at++) {
        int outside, inside;
        if (!strcmp(words[at], "--version") || !strcmp(words[at], "flags")) return execv(RUNSC, words);
        if (!strncmp(words[at], "--bundle=", 9) && is_probe(words[at] + 9)) return execv(RUNSC, words);
        if (sscanf(words[at], "--pass-fd=%d:%d", &outside, &inside) != 2) continue;
        if (inside == CONTROL) control = outside;
        if (inside == STATUS) status = outside;
    }
    if (say(status, "R\n")) return 1;
    uint32_t left;
    char message[65536];
    if (read(control, &left, sizeof left) != sizeof left) return 1;
    while (left) {
        ssize_t got = read(control, message, left < sizeof message ? left : sizeof message);
        if (got <= 0) return 1;
        left -= (uint32_t)got;
    }
    return say(status, "S\n") || say(status, "E 0 0 10\n");
}
