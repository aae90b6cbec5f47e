/* A stand-in libnvidia-ml.so.1 with 4 GPUs. Files in $NVML_STUB steer it: lostN, hangN, xidN (holding the code), none. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef void *dev_t_;
typedef unsigned long long u64;
enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15 };
struct memory { u64 total, free, used; };
struct utilization { unsigned gpu, memory; };
struct event { dev_t_ device; u64 type, data; unsigned gi, ci; };

static long slots[4] = {0, 1, 2, 3};
static void path(char *out, const char *what, long gpu) {
    const char *root = getenv("NVML_STUB");
    if (gpu < 0) snprintf(out, 512, "%s/%s", root ? root : ".", what);
    else snprintf(out, 512, "%s/%s%ld", root ? root : ".", what, gpu);
}
static int is(const char *what, long gpu) { char p[512]; path(p, what, gpu); return access(p, F_OK) == 0; }
static long at(dev_t_ d) { return *(long *)d; }

int nvmlInitWithFlags(unsigned f) { (void)f; return is("none", -1) ? DRIVER_NOT_LOADED : OK; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int e) {
    return e == DRIVER_NOT_LOADED ? "Driver Not Loaded" : e == GPU_IS_LOST ? "GPU is lost" : "error";
}
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 4; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, dev_t_ *d) {
    if (i > 3) return NOT_FOUND;
    *d = &slots[i];
    return is("lost", i) ? GPU_IS_LOST : OK;
}
int nvmlDeviceGetIndex(dev_t_ d, unsigned *i) { *i = (unsigned)at(d); return OK; }
int nvmlDeviceGetUtilizationRates(dev_t_ d, struct utilization *u) {
    while (is("hang", at(d))) usleep(5000);
    u->gpu = 40; u->memory = 10;
    return OK;
}
int nvmlDeviceGetUUID(dev_t_ d, char *s, unsigned n) { snprintf(s, n, "GPU-%ld", at(d)); return OK; }
int nvmlDeviceGetName(dev_t_ d, char *s, unsigned n) { (void)d; snprintf(s, n, "NVIDIA H100 80GB HBM3"); return OK; }
int nvmlDeviceGetClockInfo(dev_t_ d, int kind, unsigned *v) { (void)d; *v = kind == 1 ? 1980 : 2619; return OK; }
int nvmlDeviceGetCurrentClocksThrottleReasons(dev_t_ d, u64 *v) { *v = at(d) == 3 ? 0x80 : 0; return OK; }
int nvmlDeviceGetCurrentClocksEventReasons(dev_t_ d, u64 *v) { return nvmlDeviceGetCurrentClocksThrottleReasons(d, v); }
int nvmlDeviceGetPowerUsage(dev_t_ d, unsigned *v) { (void)d; *v = 512000; return OK; }
int nvmlDeviceGetTotalEnergyConsumption(dev_t_ d, u64 *v) { (void)d; *v = 7000; return OK; }
int nvmlDeviceGetTemperature(dev_t_ d, int s, unsigned *v) { (void)s; *v = 50 + (unsigned)at(d); return OK; }
int nvmlDeviceGetMemoryInfo(dev_t_ d, struct memory *m) { (void)d; m->total = 1000; m->free = 400; m->used = 600; return OK; }
int nvmlDeviceGetTotalEccErrors(dev_t_ d, int type, int counter, u64 *v) { (void)d; (void)counter; *v = type == 0 ? 9 : 1; return OK; }
int nvmlDeviceGetRemappedRows(dev_t_ d, unsigned *c, unsigned *u, unsigned *pending, unsigned *failed) {
    *c = 1; *u = 2; *pending = at(d) == 0; *failed = 0;
    return OK;
}
int nvmlDeviceGetRetiredPages(dev_t_ d, int cause, unsigned *n, u64 *a) { (void)d; (void)cause; (void)n; (void)a; return NOT_SUPPORTED; }
int nvmlDeviceGetCurrPcieLinkGeneration(dev_t_ d, unsigned *v) { (void)d; *v = 5; return OK; }
int nvmlDeviceGetMaxPcieLinkGeneration(dev_t_ d, unsigned *v) { (void)d; *v = 5; return OK; }
int nvmlDeviceGetCurrPcieLinkWidth(dev_t_ d, unsigned *v) { (void)d; *v = 8; return OK; }
int nvmlDeviceGetMaxPcieLinkWidth(dev_t_ d, unsigned *v) { (void)d; *v = 16; return OK; }
int nvmlDeviceGetPcieReplayCounter(dev_t_ d, unsigned *v) { (void)d; *v = 3; return OK; }
int nvmlDeviceGetPcieThroughput(dev_t_ d, int kind, unsigned *v) { (void)d; *v = kind == 0 ? 20 : 30; return OK; }
int nvmlDeviceGetNvLinkState(dev_t_ d, unsigned link, int *v) { (void)d; *v = link < 2; return link < 18 ? OK : NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkErrorCounter(dev_t_ d, unsigned link, int kind, u64 *v) { (void)d; (void)link; *v = kind == 0 ? 5 : 0; return OK; }
int nvmlEventSetCreate(void **s) { *s = slots; return OK; }
int nvmlEventSetFree(void *s) { (void)s; return OK; }
int nvmlDeviceRegisterEvents(dev_t_ d, u64 types, void *s) { (void)d; (void)types; (void)s; return OK; }
int nvmlEventSetWait_v2(void *s, struct event *e, unsigned ms) {
    (void)s; (void)ms;
    for (long i = 0; i < 4; i++) {
        if (!is("xid", i)) continue;
        char p[512];
        path(p, "xid", i);
        FILE *f = fopen(p, "r");
        u64 code = 0;
        if (f) { if (fscanf(f, "%llu", &code) != 1) code = 0; fclose(f); }
        unlink(p);
        memset(e, 0, sizeof *e);
        e->device = &slots[i]; e->type = 8; e->data = code;
        return OK;
    }
    return TIMEOUT;
}
