/* version.h - the version of the seven programs. */
#ifndef POSTTRAIN_VERSION_H
#define POSTTRAIN_VERSION_H

#define POSTTRAIN_VERSION "1.0"

#endif
